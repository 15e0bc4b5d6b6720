"""Clips: videos, and folders of their frames."""
