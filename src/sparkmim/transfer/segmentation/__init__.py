"""Segmentation: heads on any pyramid, losses, views, whole images window by window, scores and pictures."""
