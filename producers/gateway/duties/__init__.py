"""The duties of a gateway: its work beside answering requests."""
