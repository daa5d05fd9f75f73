"""Unmodified Hugging Face models whose layers are called one at a time."""
