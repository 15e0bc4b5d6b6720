"""Fine-tuning: a classifier on top of an encoder, both trained on labelled images."""

from .config import FinetuneConfig
from .recipes import Situation
from .run import finetune
from .summary import summary_of_results

__all__ = ["FinetuneConfig", "Situation", "finetune", "summary_of_results"]
