"""Signals: files of channels over time, such as electrocardiograms, vibrations and sound."""
