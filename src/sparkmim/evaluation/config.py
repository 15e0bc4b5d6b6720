"""Settings of evaluations that the command line shows in its help, importable without torch."""

from __future__ import annotations

from typing import Literal

Device = Literal["auto", "cpu", "cuda", "mps"]
"""Where to compute; auto takes CUDA, else MPS, else the CPU."""

NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
"""Values of k that k-NN tries."""
