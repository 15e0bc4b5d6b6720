"""Pretraining recipes under the name that recipes of one's own import; they live in `sparkmim.pretraining.recipes`."""

from .pretraining.recipes import RECIPES, Recipe, Situation, auto, demo, fast, paper

__all__ = ["RECIPES", "Recipe", "Situation", "auto", "demo", "fast", "paper"]
