"""Fine-tuning: an encoder and a head trained on labeled images."""
