"""Training: warm-up, policy phase, backbone phase, and the loop over them."""
