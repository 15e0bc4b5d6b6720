"""What an encoder is worth: classification, by fine-tuning and on frozen features."""
