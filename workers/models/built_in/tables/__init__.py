"""Models of tables and of series of measurements."""
