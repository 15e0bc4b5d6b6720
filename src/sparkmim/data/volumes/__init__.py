"""Volumes: files of three-dimensional images, brought to one geometry and stored so that crops are read quickly."""
