"""The models: their interface, the built-in ones, and checkpoints of Hugging Face."""
