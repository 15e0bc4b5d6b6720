"""Sparse execution of untouched convolutional networks: only visible patches are computed. Depends on torch alone."""

from . import rules
from .check import check
from .check_report import CheckReport, CheckResult
from .compilable import require_compilable
from .compiling import show_functions_to_modes
from .dense.coarse import CoarseExecution
from .dense.execution import MaskedDenseExecution
from .errors import UnsupportedOperation
from .execution import Execution
from .grid import CoarseGrid, PatchGrid, mask_at
from .layout import Layout
from .overrides import dense_fallback, random_factor
from .packed.execution import SparseExecution
from .packed.kernel_choice import require_triton
from .run import run

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
    "random_factor",
    "register",
    "require_compilable",
    "require_triton",
    "rules",
    "run",
    "show_functions_to_modes",
]
