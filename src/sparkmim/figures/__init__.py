"""Figures of the paper's argument, from the user's own images and networks."""

from .command import figure
from .vanishing import InputValues, Layer, Vanishing, vanishing

__all__ = ["InputValues", "Layer", "Vanishing", "figure", "vanishing"]
