"""What a gateway does of its own accord, beside answering requests."""
