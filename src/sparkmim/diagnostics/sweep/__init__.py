"""Sweep over timm: check which networks work on visible patches, and write a table.

Convolutional networks are recognized by their operations, not by their names: each network is run once without data,
and left out if it has attention or recurrence over positions, or works at one image size only. The others are checked:
identity, crop, leak and oracle (:mod:`sparkmim.sparse.check`).
"""
