"""A model and its exit policy behind HTTP."""
