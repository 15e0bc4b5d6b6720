"""Masked-image pretraining: configuration, recipes, task and run."""
