"""Which of timm's networks work on visible patches: a sweep, and its table.

Which networks count is decided by their operations, not by their names: each is run once without data, and left out if
it attends, recurs over positions or works at one image size only. Those that count are checked: identity, crop, leak
and oracle (:mod:`sparkmim.sparse.check`).
"""

from .run import sweep
from .table import all_pass, document, summary, table
from .verdict import Verdict, check_model, inspect_model

__all__ = ["Verdict", "all_pass", "check_model", "document", "inspect_model", "summary", "sweep", "table"]
