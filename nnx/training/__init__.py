"""The training loop, its state, and what makes one step."""
