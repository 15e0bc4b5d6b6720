"""What stops a run: said in words, and nothing that was good is lost."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from helpers import STEPS, TINY_PRETRAIN, assert_same_training, final, interrupt_at, lines, make_images
from sparkmim import SparK
from sparkmim.cli import main
from sparkmim.data.loader import MaskedViews
from sparkmim.data.sampler import Positions
from sparkmim.pretraining.run import pretrain
from sparkmim.training.errors import RunStopped
from sparkmim.training.step import Trainer

pytestmark = pytest.mark.slow


def run(folder: Path, images: Path, **settings: Any) -> Any:
    return pretrain(folder, chosen=TINY_PRETRAIN | {"data": images} | settings)


def run_command(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sparkmim", "pretrain", "--output", str(folder), *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[Trainer], None]) -> None:
    """Do something at the beginning of a step, 0 being the first."""
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        if self.step == step:
            act(self)
        return original(self, batches)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def fail(error: BaseException) -> Callable[[Any], None]:
    def act(_: Any) -> None:
        raise error

    return act


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),  # of a process that cannot be started
    ],
)
def test_out_of_memory_names_the_ways_out(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before_step(monkeypatch, 2, fail(error))
    with pytest.raises(RunStopped) as stop:
        run(tmp_path / "run", images, accumulate=2, checkpoint_minutes=0.0)
    text = str(stop.value)
    assert "out of memory at step 2 with 2 images of 64 x 64 at a time" in text
    assert "--batch-size (now 4)" in text
    assert "Give the same command with --accumulate 4 (now 2)" in text
    assert text.endswith("step-000000002.pt")


def test_other_errors_keep_their_traceback(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_step(monkeypatch, 1, fail(KeyError("a defect")))
    with pytest.raises(KeyError, match="a defect"):
        run(tmp_path / "run", images)


# --- not finite -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_every", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    original, calls = SparK.forward, []

    def forward(self: SparK, *args: Any, **kwargs: Any) -> Any:
        out = original(self, *args, **kwargs)
        if self.training and torch.is_grad_enabled():
            calls.append(1)
        return out._replace(loss=out.loss * float("nan")) if len(calls) == 4 else out

    folder = tmp_path / "run"
    settings = TINY_PRETRAIN | {"data": images, "log_every": log_every, "accumulate": 1}
    pretrain(folder, chosen=settings, after_step=interrupt_at(2))
    calls += [1, 1]  # so that the fourth call is of step 3
    monkeypatch.setattr(SparK, "forward", forward)
    with pytest.raises(RunStopped) as stop:
        pretrain(folder, chosen={"checkpoint_minutes": 1e9})
    text = str(stop.value)
    lr = float(text.split("learning rate ")[1].split(",")[0])
    assert "the loss is nan at step 3" in text
    assert 0 < lr < 0.01
    names = text.split("with the images ")[1].split(". Nothing")[0].split(", ")
    assert len(names) == 4
    assert set(names) <= {path.name for path in images.iterdir()}
    assert "last good state: " in text
    assert "step-000000002.pt" in text
    assert "A lower --lr or a longer --warmup-epochs may help" in text  # the precision is 32 already
    assert final(folder)["step"] == 2
    assert max(line["step"] for line in lines(folder)) <= 3
    encoder = load((folder / "encoder.safetensors").read_bytes())
    assert all(tensor.isfinite().all() for tensor in encoder.values())


def poison(name: str) -> Callable[[Trainer], None]:
    def act(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.model.get_parameter(name).view(-1)[0] = float("nan")

    return act


def test_a_poisoned_weight_is_noticed_at_the_next_step(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_step(monkeypatch, 3, poison("decoder.proj.weight"))
    with pytest.raises(RunStopped, match=r"the loss is nan at step 3, .*last good state: .*step-000000003\.pt"):
        run(tmp_path / "run", images, checkpoint_minutes=0.0)
    assert final(tmp_path / "run")["step"] == 3
    assert all(tensor.isfinite().all() for tensor in final(tmp_path / "run")["model"].values())


def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the loss was: it is of the step that spoilt them."""
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        result = original(self, batches)
        if self.step == 3:
            poison("decoder.proj.weight")(self)
        return result

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(RunStopped, match=r"1 of the model's tensors is not finite after step 3, .*decoder.proj.w"):
        run(tmp_path / "run", images, checkpoint_minutes=0.0)
    assert final(tmp_path / "run")["step"] == 2


# --- disk -----------------------------------------------------------------------------------------------------------


FDOPEN = os.fdopen


class SmallDisk:
    """Files that take `room` bytes together, then no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, code: int = errno.ENOSPC) -> None:
        self.left, self.code = room, code
        monkeypatch.setattr(os, "fdopen", self.open)

    def open(self, *args: Any) -> Any:
        file = FDOPEN(*args)
        original = file.write
        disk = self

        class Proxy:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *exception: object) -> None:
                file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def write(self, content: Any) -> int:
                disk.left -= len(content)
                if disk.left < 0:
                    raise OSError(disk.code, os.strerror(disk.code))
                return int(original(content))

        return Proxy()


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path,
    images: Path,
    uninterrupted: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    settings = TINY_PRETRAIN | {"data": images}
    pretrain(folder, chosen=settings, after_step=interrupt_at(2))
    with monkeypatch.context() as patch:
        SmallDisk(patch, 100_000)
        with pytest.raises(
            RunStopped, match=r"the disk of .*run is full, at step 3\. .*step-000000002.*Free some space"
        ):
            pretrain(folder, chosen={"checkpoint_minutes": 0.0})
        capsys.readouterr()
        SmallDisk(patch, 100_000)
        assert run_command(patch, folder, "--checkpoint-minutes", "0") == 3
        printed = capsys.readouterr()
        assert "sparkmim: the disk of" in printed.err
        assert "Traceback" not in printed.err
        SmallDisk(patch, 10)
        assert run_command(patch, folder) == 3
        assert "is full, at the beginning" in capsys.readouterr().err
        SmallDisk(patch, 100_000, errno.EIO)
        with pytest.raises(RunStopped, match=r"cannot be read or written \(.*Input/output error.*step-000000002"):
            pretrain(folder, chosen={"checkpoint_minutes": 0.0})
    assert final(folder)["step"] == 2
    assert not list(folder.rglob("*.partial"))
    assert pretrain(folder).step == STEPS  # type: ignore[union-attr]
    assert_same_training(folder, uninterrupted())


FULL_DISK = """
import contextlib, os, shutil, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[3])
from helpers import TINY_PRETRAIN, final, interrupt_at
from sparkmim.cli import main
from sparkmim.pretraining.run import pretrain

torch.set_num_threads(1)
disk, images = Path(sys.argv[1]), Path(sys.argv[2])
pretrain(disk / "run", chosen=TINY_PRETRAIN | {"data": images}, after_step=interrupt_at(2))
filler = disk / "filler"
with contextlib.suppress(OSError), filler.open("wb") as file:
    while True:
        file.write(bytes(4096))
        file.flush()
for spare in (4096, 200_000):  # for nothing, not even the lines of metrics; for half of a checkpoint
    os.truncate(filler, max(0, filler.stat().st_size - spare))
    sys.argv = ["sparkmim", "pretrain", "--output", str(disk / "run"), "--checkpoint-minutes", "0"]
    try:
        main()
    except SystemExit as stop:
        print("code", stop.code)
    print("step", final(disk / "run")["step"], "partials", len(list(disk.rglob("*.partial"))))
filler.unlink()
print("end", pretrain(disk / "run").step)
"""


@pytest.mark.slow
def test_a_full_disk_for_real(tmp_path: Path, images: Path) -> None:
    """On a small file system in memory, in a mount namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=24m tmpfs '{disk}'"
    share = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    try:
        tried = subprocess.run([*share, "sh", "-c", mount], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if tried.returncode:
        pytest.skip(f"no file system can be mounted: {tried.stderr.strip()}")
    script = tmp_path / "full.py"
    script.write_text(FULL_DISK)
    here = str(Path(__file__).parents[1])
    inner = f"{mount} && exec '{sys.executable}' '{script}' '{disk}' '{images}' '{here}'"
    done = subprocess.run([*share, "sh", "-c", inner], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith(("code", "step 2 partials", "end"))]
    assert told == ["code 3", "step 2 partials 0", "code 3", "step 2 partials 0", f"end {STEPS}"], done.stdout
    assert done.stderr.count("is full") == 2
    assert "Traceback" not in done.stderr, done.stderr


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of 6 images tried can be read as 3 channels; 0\.png: Unidentified"):
        run(tmp_path / "run", folder, workers=workers)
    assert not (tmp_path / "run").exists()
    # And if they break later:
    for module in ("pretraining.prepare", "data.statistics"):
        monkeypatch.setattr(f"sparkmim.{module}.first_readable", lambda *_, **__: torch.zeros(1, dtype=torch.uint8))
    with pytest.raises(RunStopped, match=r"image after image cannot be read, at step 0; .*UnidentifiedImageError"):
        run(tmp_path / "run", folder, workers=workers)
    assert multiprocessing.active_children() == []  # or the interpreter would wait for them at its end


def test_too_many_broken_images(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 8)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(RunStopped, match=r"[1-3] of 8 images cannot be read, more than the share of 0.1 that --max"):
        run(tmp_path / "run", folder)
    listed = (tmp_path / "run" / "broken_images.txt").read_text().splitlines()
    assert {line.split("\t")[0] for line in listed} <= {"0.png", "1.png", "2.png"}
    assert all("UnidentifiedImageError" in line for line in listed)


def test_a_reading_process_that_dies(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Any, key: Any) -> None:
        os._exit(7)

    monkeypatch.setattr("sparkmim.data.loader.MaskedViews.__getitems__", die)
    with pytest.raises(RunStopped, match=r"a process that reads images died at step 0 .*fewer --workers \(now 1\)"):
        run(tmp_path / "run", images, workers=1)


def test_a_reading_process_that_dies_of_an_image(
    tmp_path: Path, images: Path, uninterrupted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last finished step is saved, and nothing of the step that cannot be finished."""
    settings = {"accumulate": 2, "workers": 1}
    original, main = MaskedViews.__getitems__, os.getpid()

    def die(self: Any, keys: Any) -> Any:
        if os.getpid() != main and keys == fatal:
            os._exit(7)
        return original(self, keys)

    fatal = list(Positions(10, 4, 6, 1, accumulate=2))[5]  # the second half of step 2
    with monkeypatch.context() as patch:
        patch.setattr(MaskedViews, "__getitems__", die)
        with pytest.raises(RunStopped, match=r"a process that reads images died at step 2 .*step-000000002\.pt"):
            run(tmp_path / "run", images, **settings)
    pretrain(tmp_path / "run", chosen={"workers": 0})
    assert_same_training(tmp_path / "run", uninterrupted(accumulate=2))
