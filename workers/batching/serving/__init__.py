"""The models that a worker serves: built, warmed up, tuned and explained."""
