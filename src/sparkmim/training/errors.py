"""What can go wrong in a run, in words: what happened, what is kept, what to do."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..checkpoints.run_folder import RunFolder
from ..data.decoding.encoded import UnreadableImage
from ..utils.devices import out_of_memory
from ..utils.text import printable
from .step import Trainer

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

NAMES = 16
"""Images named in a message, at most."""


class RunStopped(Exception):
    """The run cannot continue; the message says why, what is kept and what to do."""


def last_good(run: RunFolder) -> str:
    """Return where a run could be resumed."""
    paths = run.list_checkpoints()
    return str(paths[-1]) if paths else "none yet, the run starts again from the beginning"


def not_finite(
    trainer: Trainer, run: RunFolder, step: int, loss: float, norm: float, names: Sequence[str]
) -> RunStopped:
    """Return the error for a step whose loss or gradient is not finite."""
    lr, _ = trainer.rates(step)
    what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
    images = ", ".join(map(printable, names[:NAMES]))
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return RunStopped(
        f"{what} at step {step}, learning rate {lr:.3g}, with the images {images}{more}. Nothing was saved "
        f"since; last good state: {last_good(run)}. {_remedy(trainer)} may help, or removing a damaged image"
    )


def _remedy(trainer: Trainer) -> str:
    """Return the settings under which numbers stay finite, but for those that are so already."""
    if trainer.config.run.precision == "32":
        return "A lower --lr or a longer --warmup-epochs"
    return "A lower --lr, a longer --warmup-epochs or --precision 32"


def weights_not_finite(trainer: Trainer, run: RunFolder, names: Sequence[str]) -> RunStopped:
    """Return the error for a model that is not finite though all losses were."""
    return RunStopped(
        f"{len(names)} of the model's tensors are not finite after step {trainer.step}, learning rate "
        f"{trainer.rates(trainer.step - 1)[0]:.3g}: {', '.join(names[:NAMES])}. Nothing was saved of it; last good "
        f"state: {last_good(run)}. {_remedy(trainer)} may help"
    )


def disk_failed(run: RunFolder, error: OSError, when: str) -> RunStopped:
    """Return the error for a file that cannot be written or read."""
    full = error.errno in DISK_FULL
    what = f"the disk of {run.root} is full" if full else f"a file cannot be read or written ({error})"
    return RunStopped(
        f"{what}, {when}. The last good checkpoint is untouched: {last_good(run)}. "
        f"{'Free some space' if full else 'Fix that'} and give the same command again"
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
        last_line = text.strip().splitlines()[-1] if text.strip() else type(error).__name__
        if out_of_memory(error):
            raise RunStopped(
                f"out of memory at step {trainer.step} with {trainer.task.micro_batch} images of "
                f"{' x '.join(map(str, config.data.image_size))} at a time. Lower --batch-size (now "
                f"{config.run.batch_size}), or keep it and double --accumulate (now {config.run.accumulate}); a "
                f"smaller --image-size or --decoder-width, or --precision bf16-mixed, help too. Last good state: "
                f"{last_good(run)}"
            ) from error
        if isinstance(error, UnreadableImage):
            raise RunStopped(
                f"image after image cannot be read, at step {trainer.step}; the last one: {last_line}. Check that "
                f"these files are images. Last good state: {last_good(run)}"
            ) from error
        if "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text):
            raise RunStopped(
                f"a process that reads images died at step {trainer.step} ({last_line}), mostly for lack of memory; "
                f"try fewer --workers. Last good state: {last_good(run)}"
            ) from error
        if ("torch_" in text and "shared memory" in text) or "</torch_" in text:
            raise RunStopped(
                f"the shared memory through which images are passed is full, at step {trainer.step} ({last_line}); "
                f"try fewer --workers, or enlarge /dev/shm. Last good state: {last_good(run)}"
            ) from error
        failure = next((e for e in causes(error) if isinstance(e, OSError)), None)
        if failure is not None and isinstance(error, (OSError, RuntimeError)):
            raise disk_failed(run, failure, f"at step {trainer.step}") from error
        raise


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from: torch.save replaces the errors of the file that it writes to."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
