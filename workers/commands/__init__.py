"""The commands of the worker package: worker, models, doctor, reload, flight recorder."""
