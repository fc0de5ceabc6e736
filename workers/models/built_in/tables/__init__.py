"""Models of table rows and of sensor series."""
