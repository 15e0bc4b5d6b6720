"""What can go wrong in a run, in words: what happened, what is kept, what to do."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .run_folder import RunFolder
from .step import Trainer

FULL = {errno.ENOSPC, errno.EDQUOT}

NAMES = 16
"""Images to name at most."""


class RunStopped(Exception):
    """The run cannot go on; the message says why, what is kept and what to do."""


def kept(run: RunFolder) -> str:
    """Where a run could go on."""
    paths = run.list_checkpoints()
    return str(paths[-1]) if paths else "none yet, the run starts again from the beginning"


def not_finite(
    trainer: Trainer, run: RunFolder, step: int, loss: float, norm: float, names: Sequence[str]
) -> RunStopped:
    """The loss or the gradient of a step is not finite."""
    lr, _ = trainer.rates(step)
    what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return RunStopped(
        f"{what} at step {step}, learning rate {lr:.3g}, with the images {', '.join(names[:NAMES])}{more}. Nothing was "
        f"saved since; last good state: {kept(run)}. A lower --lr, a longer --warmup-epochs or --precision 32 may "
        f"help, or taking a damaged image away"
    )


@contextmanager
def explained(trainer: Trainer, run: RunFolder) -> Iterator[None]:
    """Turn failures of memory, disk and reading processes into :class:`RunStopped`."""
    try:
        yield
    except RunStopped:
        raise
    except Exception as error:
        text, config = str(error), trainer.config
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "allocate memory" in text:
            raise RunStopped(
                f"out of memory at step {trainer.step} with {trainer.micro_batch} images of "
                f"{' x '.join(map(str, config.data.image_size))} at a time. Lower --batch-size (now "
                f"{config.run.batch_size}), or keep it and double --accumulate (now {config.run.accumulate}); a "
                f"smaller --image-size or --decoder-width, or --precision bf16-mixed, help too. Last good state: "
                f"{kept(run)}"
            ) from error
        if (isinstance(error, OSError) and error.errno in FULL) or "No space left" in text:
            raise RunStopped(
                f"the disk of {run.root} is full, at step {trainer.step}. The last good checkpoint is untouched: "
                f"{kept(run)}. Make room and give the same command again"
            ) from error
        if "DataLoader worker" in text:
            raise RunStopped(
                f"a process that reads images died at step {trainer.step} ({text.splitlines()[0]}), mostly for want of "
                f"memory; try fewer --workers. Last good state: {kept(run)}"
            ) from error
        raise
