"""Image generation with diffusers folders, step by step; many requests share each pass."""
