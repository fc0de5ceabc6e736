"""LoRA adapters: read from their folders, and applied row by row in a mixed batch."""
