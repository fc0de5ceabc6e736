"""Pictures made of noise, step by step: folders of diffusers', of which many requests share each pass."""
