"""Diagnostics: the check of a network, the sweep over timm, the benchmark of a training step, the vanishing figure."""
