"""The gateway's own HTTP routes and its page."""
