"""sparkmim: masked-image pretraining for any convolutional network, with sparsity that is real and exact."""

from .models.backbone import Backbone
from .models.masking import random_visible
from .models.spark import SparK, SparKOutput
from .objectives.base import Objective
from .sparse import UnsupportedOperation

__all__ = ["Backbone", "Objective", "SparK", "SparKOutput", "UnsupportedOperation", "random_visible"]
