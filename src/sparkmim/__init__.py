"""sparkmim: masked-image pretraining for any convolutional network, with sparsity that is real and exact."""

from .backbone import Backbone
from .masking import random_visible
from .spark import SparK, SparKOutput
from .sparse import UnsupportedOperation

__all__ = ["Backbone", "SparK", "SparKOutput", "UnsupportedOperation", "random_visible"]
