"""Evaluation of frozen features: embeddings, k-NN, linear probe."""
