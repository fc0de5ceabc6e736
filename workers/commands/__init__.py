"""The commands that `argosy` gains with a worker: worker, models, doctor, reload, flight recorder."""
