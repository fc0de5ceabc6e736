"""Images decoded to pixels, and packed into the rows of a batch."""
