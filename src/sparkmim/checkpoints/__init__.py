"""Weights files and run folders: reading, converting, writing."""
