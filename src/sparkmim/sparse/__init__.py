"""Sparse execution of untouched convolutional networks: only visible patches are computed. Depends on torch alone."""

from . import ops
from .check import CheckReport, CheckResult, check
from .coarse import CoarseExecution
from .compiling import show_functions_to_modes
from .execution import Execution, UnsupportedOperation
from .grid import CoarseGrid, PatchGrid, mask_at
from .layout import Layout
from .opaque import dense_fallback, random_factor
from .ops.depthwise import require_triton
from .packed import SparseExecution
from .reference import MaskedDenseExecution

register = Execution.register

__all__ = [
    "CheckReport",
    "CheckResult",
    "CoarseExecution",
    "CoarseGrid",
    "Execution",
    "Layout",
    "MaskedDenseExecution",
    "PatchGrid",
    "SparseExecution",
    "UnsupportedOperation",
    "check",
    "dense_fallback",
    "mask_at",
    "ops",
    "random_factor",
    "register",
    "require_triton",
    "show_functions_to_modes",
]
