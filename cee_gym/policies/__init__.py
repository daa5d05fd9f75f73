"""Exit policies: what leaves where."""
