"""Models of recordings: speech recognition and audio classification."""
