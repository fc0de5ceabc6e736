"""Joint training: the encoder fine-tuned with all heads at once, by one or many processes."""
