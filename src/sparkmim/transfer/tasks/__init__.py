"""What an encoder is fine-tuned for: one task a file, found by its name."""
