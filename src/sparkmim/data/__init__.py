"""From files to batches of masked views, the same ones whatever the number of processes and workers."""

from .config import DataConfig, ViewConfig
from .decode import UnreadableImage, read_image
from .loader import Batch, evaluation_batches, training_batches
from .normalise import Normalise, join
from .randomness import keyed_generator, keyed_seed
from .sources import ImageSource, Subset, builtin_photographs, find_images, held_out, printable
from .views import View, evaluation_view, training_view

__all__ = [
    "Batch",
    "DataConfig",
    "ImageSource",
    "Normalise",
    "Subset",
    "UnreadableImage",
    "View",
    "ViewConfig",
    "builtin_photographs",
    "evaluation_batches",
    "evaluation_view",
    "find_images",
    "held_out",
    "join",
    "keyed_generator",
    "keyed_seed",
    "printable",
    "read_image",
    "training_batches",
    "training_view",
]
