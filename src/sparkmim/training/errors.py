"""What can go wrong in a run, in words: what happened, what is kept, what to do."""

from __future__ import annotations

import errno
import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..checkpoints.run_folder import RunFolder
from ..data.decoding.encoded import UnreadableImage
from ..data.loader import ReaderDied, worker_died
from ..data.shared_memory import SHARED_MEMORY, shared_memory_free
from ..utils.devices import out_of_memory
from ..utils.distributed import WAIT, OtherProcessStopped, lost_connection
from ..utils.text import counted, printable, verb
from .step import Trainer

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

NAMES = 16
"""Images named in a message, at most."""


class RunStopped(Exception):
    """The run cannot continue; the message says why, what is kept and what to do.

    Args:
        message: that text.
        everywhere: all processes of the run raise the same error.
    """

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


def last_good(run: RunFolder) -> str:
    """Return where a run could be resumed."""
    paths = run.list_checkpoints()
    return str(paths[-1]) if paths else "none yet, the run starts again from the beginning"


def with_settings(run: RunFolder, flags: str) -> str:
    """Return how to continue with other settings: a run that has a checkpoint keeps its own in its folder."""
    paths = run.list_checkpoints()
    if not paths:
        return f"give the same command with {flags}"
    return f"continue in another folder: --resume {shlex.quote(str(paths[-1]))} --output NEW {flags}"


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
        f"since; last good state: {last_good(run)}. {_remedy(trainer, run)}. A damaged image may be the cause, too",
        everywhere=True,
    )


def never_finite(trainer: Trainer, run: RunFolder, step: int, skipped: int) -> RunStopped:
    """Return the error for gradients in float16 that are not finite step after step, which are skipped."""
    return RunStopped(
        f"the gradients of {skipped} steps in a row, up to step {step}, were not finite in float16 and were skipped: "
        f"nothing is learned. Without float16, {with_settings(run, '--precision 32')}. Last good state: "
        f"{last_good(run)}",
        everywhere=True,
    )


def _remedy(trainer: Trainer, run: RunFolder) -> str:
    """Return the settings under which numbers stay finite, but for those that are so already."""
    config = trainer.config
    lower = with_settings(run, f"--lr {config.optimizer.lr / 2:.3g}")
    if config.run.precision == "32":
        return f"A lower --lr or a longer --warmup-epochs may help; for example, {lower}"
    return f"A lower --lr, a longer --warmup-epochs or --precision 32 may help; for example, {lower}"


def weights_not_finite(trainer: Trainer, run: RunFolder, names: Sequence[str]) -> RunStopped:
    """Return the error for a model that is not finite though all losses were."""
    return RunStopped(
        f"{len(names)} of the model's tensors {verb(len(names), 'are')} not finite after step {trainer.step}, "
        "learning rate "
        f"{trainer.rates(trainer.step - 1)[0]:.3g}: {', '.join(names[:NAMES])}. Nothing was saved of it; last good "
        f"state: {last_good(run)}. {_remedy(trainer, run)}"
    )


def disk_failed(run: RunFolder, error: OSError, when: str) -> RunStopped:
    """Return the error for a file that cannot be written or read."""
    full = error.errno in DISK_FULL
    if full and error.filename is None and shared_memory_free() == 0:
        return shared_memory_is_full(run, str(error), when)
    what = f"the disk of {run.root} is full" if full else f"a file cannot be read or written ({error})"
    return RunStopped(
        f"{what}, {when}. The last good checkpoint is untouched: {last_good(run)}. "
        f"{'Free some space' if full else 'Fix that'} and give the same command again"
    )


def shared_memory_is_full(run: RunFolder, what: str, when: str) -> RunStopped:
    """Return the error for shared memory without room, which is not the disk's."""
    return RunStopped(
        f"the shared memory through which images are passed ({SHARED_MEMORY}) is full, {when} ({what}). Enlarge it "
        f"(docker run --shm-size 8g), or give the same command with --workers 0. Last good state: {last_good(run)}"
    )


def readers_died(trainer: Trainer, run: RunFolder, what: str, names: Sequence[str] = ()) -> RunStopped:
    """Return the error for a process that read images and has ended, after a checkpoint was saved.

    Args:
        trainer: of the run.
        run: its folder.
        what: says how the process ended.
        names: of the images that it was reading, if they are known.
    """
    if "Bus error" in what:
        return shared_memory_is_full(run, what, f"at step {trainer.step}")
    of_an_image = (
        f" If it dies there again, one of these images ends the program that decodes it: "
        f"{', '.join(map(printable, names[:NAMES]))}{f' and {len(names) - NAMES} more' * (len(names) > NAMES)}; put "
        "another file of that name in its place."
    )
    return RunStopped(
        f"a process that reads images died at step {trainer.step} ({what}), mostly for lack of memory, or of a damaged "
        f"image. Give the same command again, with fewer --workers (now {trainer.config.data.workers}) if it was "
        f"memory.{of_an_image * bool(names)} Last good state: {last_good(run)}"
    )


def too_large(trainer: Trainer, run: RunFolder) -> RunStopped:
    """Return the error for a step that does not fit into memory."""
    config, each = trainer.config, trainer.task.micro_batch * trainer.config.run.accumulate
    now = config.run.accumulate
    more = next((n for n in range(now + 1, each + 1) if each % n == 0), None)
    shaping = "" if run.list_checkpoints() else " or --decoder-width" * hasattr(trainer.model, "decoder")
    parts = [] if more is None else [f"Give the same command with --accumulate {more} (now {now}): smaller parts"]
    precision = " or --precision bf16-mixed" * (config.run.precision == "32")
    flags = with_settings(run, f"--batch-size {max(1, config.run.batch_size // 2)}")
    ways = [
        *parts,
        f"A smaller --batch-size (now {config.run.batch_size}), --image-size{shaping}{precision} helps, too",
    ]
    return RunStopped(
        f"out of memory at step {trainer.step} with {counted(trainer.task.micro_batch, 'image')} of "
        f"{' x '.join(map(str, config.data.image_size))} at a time. {'. '.join(ways)}; for example, {flags}. Last good "
        f"state: {last_good(run)}"
    )


@contextmanager
def explained(trainer: Trainer, run: RunFolder) -> Iterator[None]:
    """Turn failures of memory, disk, other processes and those that read images into :class:`RunStopped`."""
    try:
        yield
    except (RunStopped, OtherProcessStopped):
        raise
    except Exception as error:
        text, when = str(error), f"at step {trainer.step}"
        last_line = text.strip().splitlines()[-1] if text.strip() else type(error).__name__
        if out_of_memory(error):
            raise too_large(trainer, run) from error
        if isinstance(error, UnreadableImage):
            raise RunStopped(
                f"image after image cannot be read, {when}; the last one: {last_line}. Check that these files are "
                f"images. Last good state: {last_good(run)}"
            ) from error
        if isinstance(error, ReaderDied) or worker_died(error):
            raise readers_died(trainer, run, last_line) from error
        if ("torch_" in text and "shared memory" in text) or "</torch_" in text:
            raise shared_memory_is_full(run, last_line, when) from error
        if lost_connection(error):
            raise RunStopped(
                f"another process of this run has ended, or did not answer for {WAIT.total_seconds() / 60:g} minutes, "
                f"{when}; see what it says. Give the same command again to continue. Last good state: {last_good(run)}"
            ) from error
        failure = next((e for e in causes(error) if isinstance(e, OSError)), None)
        if failure is not None and isinstance(error, (OSError, RuntimeError)):
            raise disk_failed(run, failure, when) from error
        raise


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from: torch.save replaces the errors of the file that it writes to."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
