"""Report in words where other code than this package's fails."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..sparse import UnsupportedOperation
from ..utils.devices import out_of_memory
from .levels import SomeSizesError


@contextmanager
def code_of(spec: str, *others: str) -> Iterator[None]:
    """Report in words where the code of a user's file fails, or that a timm network has no feature maps.

    Args:
        spec: the network or recipe whose code runs.
        others: plug-ins whose code it calls, as `FILE.py:CLASS`; what fails in their files is reported as theirs.

    Raises:
        ValueError: in place of what other code than this package's raised.
    """
    try:
        yield
    except UnsupportedOperation:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        some_sizes = isinstance(error, SomeSizesError) and ".py:" not in spec
        own_words = isinstance(error, ValueError) and not some_sizes
        if own_words and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1]):
            raise
        what = f"{type(error).__name__}: {error}"
        theirs = [other for frame in frames for other in others if f"{frame.filename}:" in other]
        spec = theirs[-1] if theirs else spec
        if ".py:" not in spec:
            raise ValueError(
                f"{spec} does not give feature maps of images of any size ({what}); expected a convolutional network"
            ) from error
        own = [frame.lineno for frame in frames if f"{frame.filename}:" in spec]
        raise ValueError(f"{spec} fails{f' at line {own[-1]}' if own else ''}: {what}") from error
