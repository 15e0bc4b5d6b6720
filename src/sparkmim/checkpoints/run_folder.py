"""Run folders: their files, each written atomically, so that a crash never leaves half a file.

```
RUN/config.json          the configuration, every value resolved
RUN/plan.json            the plan, as shown before the run
RUN/environment.json     versions and device
RUN/metrics.jsonl        metrics, a line every few steps
RUN/checkpoints/         step-*.pt, the newest ones; step-*.pt.unreadable, set aside when the run was resumed
RUN/encoder.safetensors  the encoder as of the newest checkpoint
RUN/teacher.safetensors  the averaged encoder of --objective latents, likewise
RUN/reconstructions/     step-*.png
RUN/model.safetensors    the classifier of a fine-tuning, as of the best validation so far
RUN/results.json         its scores, at the end
RUN/mistakes/            images of the most confident mistakes, for each set of images
RUN/report.html          the report
RUN/broken_images.txt    images that could not be read, and why
RUN/broken_held_out_images.txt    the same of those held out
RUN/tensorboard/         the metrics for TensorBoard
RUN/tracking.json        by what the service of --log knows the run
RUN/.lock                held by the process that trains here
```
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from ..utils.devices import out_of_memory
from ..utils.io import HALF, SUFFIX, parse_metrics, read_json, require_honest_archive, write_atomically, write_text
from ..utils.text import printable
from .own_files import require_own_files
from .state import PARTS, unsound_part

CHECKPOINT = re.compile(r"step-(\d{9,})\.pt")
"""Names of the checkpoints that a run writes."""

UNREADABLE = ".unreadable"
"""Added to the names of checkpoints that could not be read."""


class BrokenCheckpoint(ValueError):
    """A checkpoint that cannot be read.

    Args:
        message: for the user.
        passing: the reason is not in the file, which may be read another time.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class NewestCheckpoint(NamedTuple):
    """The newest checkpoint of a folder that can be read.

    Attributes:
        state: its content.
        path: of its file.
        unreadable: newer ones, and why they cannot be read.
    """

    state: dict[str, Any]
    path: Path
    unreadable: Mapping[Path, BrokenCheckpoint]


class Contents(NamedTuple):
    """The files that determine how a run resumes: `config.json`, None if missing, and the names of the checkpoints."""

    config: bytes | None
    checkpoints: tuple[str, ...]


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        self.config = self.root / "config.json"
        self.plan = self.root / "plan.json"
        self.environment = self.root / "environment.json"
        self.metrics = self.root / "metrics.jsonl"
        self.checkpoints = self.root / "checkpoints"
        self.encoder = self.root / "encoder.safetensors"
        self.reconstructions = self.root / "reconstructions"
        self.classifier = self.root / "model.safetensors"
        self.results = self.root / "results.json"
        self.mistakes = self.root / "mistakes"
        self.broken = self.root / "broken_images.txt"
        self.broken_held_out = self.root / "broken_held_out_images.txt"
        self.tensorboard = self.root / "tensorboard"
        self.report = self.root / "report.html"
        self.tracking = self.root / "tracking.json"
        self.lock = self.root / ".lock"

    def network(self, name: str) -> Path:
        """Return the file of a network that the objective keeps beside the encoder."""
        return self.root / f"{name}.safetensors"

    def read_config(self) -> dict[str, Any] | None:
        """Read `config.json`; None if the folder is empty or missing.

        Raises:
            ValueError: if the folder holds other files.
        """
        above = next((p for p in self.root.parents if p.exists()), None)
        if above is not None and not above.is_dir():
            raise ValueError(f"{self.root} cannot be created, since {above} is a file; use another --output")
        if not self.root.exists():
            return None
        if not self.root.is_dir():
            raise ValueError(f"{self.root} is a file; --output takes a folder")
        require_own_files(self.root)
        if self.config.exists():
            try:
                recorded = read_json(self.config)
            except ValueError as error:
                raise ValueError(f"{self.config} is not JSON ({error}); use another --output") from error
            if not isinstance(recorded, dict) or "sparkmim" not in recorded:
                raise ValueError(f"{self.config} was not written by sparkmim; use another --output")
            return recorded
        others = [p.name for p in self.root.iterdir() if p != self.lock and not HALF.fullmatch(p.name)]
        if others:
            raise ValueError(
                f"{self.root} exists and is not a run of sparkmim (it contains {others[0]}); use another --output"
            )
        return None

    def contents(self) -> Contents:
        """Read the files that determine how the run resumes."""
        config = self.config.read_bytes() if self.config.exists() else None
        return Contents(config, tuple(path.name for path in self.list_checkpoints()))

    def clean(self) -> None:
        """Remove the temporary files of interrupted writes; other files of the same ending are the user's."""
        for path in self.root.rglob("*" + SUFFIX):
            if HALF.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def checkpoint(self, step: int) -> Path:
        """Return the path of a step's checkpoint."""
        return self.checkpoints / f"step-{step:09}.pt"

    def list_checkpoints(self) -> list[Path]:
        """Return the paths of all checkpoints, oldest first; files of other names are the user's."""
        named = [(CHECKPOINT.fullmatch(path.name), path) for path in self.checkpoints.glob("step-*.pt")]
        return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]

    def save_checkpoint(self, state: Mapping[str, Any], step: int, keep: int) -> Path:
        """Write the checkpoint of a step, then remove all but the newest `keep`.

        Checkpoints of later steps are removed too: they were given up when the run went back to an earlier step, and
        would be taken for newer.
        """
        path = self.checkpoint(step)
        write_atomically(path, lambda file: _write_with_checksums(state, file))
        paths = self.list_checkpoints()
        place = paths.index(path) + 1
        for other in paths[: max(0, place - keep)] + paths[place:]:
            other.unlink(missing_ok=True)
        return path

    def set_aside(self, paths: Iterable[Path]) -> None:
        """Rename checkpoints that cannot be read, so that they are neither taken for the newest nor removed."""
        for path in paths:
            with suppress(FileNotFoundError):
                path.replace(path.with_name(path.name + UNREADABLE))

    def newest_checkpoint(self) -> NewestCheckpoint | None:
        """Read the newest readable checkpoint; None if there are no checkpoints.

        Raises:
            BrokenCheckpoint: if there are checkpoints but none is readable.
        """
        errors: dict[Path, BrokenCheckpoint] = {}
        for path in reversed(self.list_checkpoints()):
            try:
                return NewestCheckpoint(read_checkpoint(path), path, errors)
            except BrokenCheckpoint as error:
                errors[path] = error
        if not errors:
            return None
        said = "; ".join(map(str, errors.values()))
        remedy = f"Remove {self.checkpoints} to start again from the beginning, or use another --output"
        if any(error.passing for error in errors.values()):
            remedy = "Give the same command again when that is mended"
        raise BrokenCheckpoint(f"no checkpoint of {self.root} can be read: {said}. {remedy}")

    def truncate_metrics(self, step: int) -> None:
        """Remove the lines after a step, which will be computed again."""
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(errors="replace").splitlines()
        kept = [line for line in lines if (values := parse_metrics(line)) is not None and values["step"] <= step]
        write_text(self.metrics, "".join(line + "\n" for line in kept))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint written by :meth:`RunFolder.save_checkpoint`.

    Raises:
        BrokenCheckpoint: if it is missing, cut off, of another program, or a bit of it is not as it was written.
    """
    if path.is_dir():
        names = [str(p) for p in RunFolder(path).list_checkpoints()] or ["RUN/checkpoints/step-*.pt"]
        raise BrokenCheckpoint(f"{path} is a folder; --resume takes auto, never, or a checkpoint, as {names[-1]}")
    try:
        require_honest_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BrokenCheckpoint(
            f"there is no checkpoint {path}; --resume takes auto, never, or one of RUN/checkpoints"
        ) from error
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, OSError) or out_of_memory(error):
            reason = "there is not enough memory" if out_of_memory(error) else str(error)
            raise BrokenCheckpoint(f"{path} cannot be read now ({reason})", passing=True) from error
        raise _not_a_checkpoint(path, error) from error
    except Exception as error:  # torch raises anything on other formats
        raise _not_a_checkpoint(path, error) from error
    if not isinstance(state, dict) or not state.keys() >= PARTS:
        raise BrokenCheckpoint(
            f"{path} is not a checkpoint of a sparkmim pretraining; --init reads weights from elsewhere"
        )
    _require_checksums(path)
    unsound = unsound_part(state)
    if unsound is not None:
        raise BrokenCheckpoint(f"{path} is a damaged checkpoint: {unsound}")
    return state


def _write_with_checksums(state: Mapping[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint with a checksum of each part, also where the program has switched them off."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        torch.save(state, file)
    finally:
        torch.serialization.set_crc32_options(before)


def _require_checksums(path: Path) -> None:
    """Raise unless every part of a checkpoint is as it was written: torch does not compare the checksums it writes.

    Raises:
        BrokenCheckpoint: naming the first part that is not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise BrokenCheckpoint(f"{path} cannot be read now ({error})", passing=True) from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, zlib.error) as error:
        raise BrokenCheckpoint(f"{path} is a damaged checkpoint: {printable(str(error))}") from error
    if damaged is not None:
        raise BrokenCheckpoint(
            f"{path} is a damaged checkpoint: the checksum of its part {printable(damaged)} is another one"
        )


def _not_a_checkpoint(path: Path, error: Exception) -> BrokenCheckpoint:
    """Return the error for a file that is cut off or of another format."""
    reason = " ".join(str(error).split(". ")[0].split())  # torch's advice follows, which does not apply
    return BrokenCheckpoint(
        f"{path} cannot be read as a checkpoint ({type(error).__name__}: {reason}): it is cut off, or of another format"
    )


def identity(state: Mapping[str, Any]) -> str:
    """Return a digest of a checkpoint's step and weights."""
    digest = hashlib.blake2b(str(state["step"]).encode(), digest_size=16)
    for name, tensor in state["model"].items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
