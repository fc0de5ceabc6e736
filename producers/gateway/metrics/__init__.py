"""The metrics of the fleet and of the gateway for Prometheus, and the number of workers for a scaler."""
