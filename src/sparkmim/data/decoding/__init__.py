"""Bytes of a file to an image tensor."""
