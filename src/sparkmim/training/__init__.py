"""The training loop and everything around it, whatever is trained."""
