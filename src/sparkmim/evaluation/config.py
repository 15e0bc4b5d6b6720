"""Default values of evaluations, importable without torch."""

from __future__ import annotations

from typing import Literal

NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
"""Values of k that k-NN tries."""

SHOTS = (1, 5, 10)
"""Images of a class from which all others are classified."""

Pooling = Literal["mean", "attention"]
"""How the positions of a feature map become one vector: averaged, or weighted as a probe learns."""
