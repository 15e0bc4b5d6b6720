"""What a message advises works: each test reads the flags in a message, gives the command with them, and trains."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import TINY_PRETRAIN, assert_same_training, final, interrupt_at, make_images, make_split, printed
from sparkmim.checkpoints import run_folder
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.cli import run_command
from sparkmim.pretraining.config import PretrainConfig
from sparkmim.pretraining.prepare import Pretraining
from sparkmim.pretraining.run import pretrain
from sparkmim.training import loop
from sparkmim.training.step import Trainer

pytestmark = pytest.mark.slow

SETTINGS = TINY_PRETRAIN | {"epochs": 0.8, "warmup_epochs": 0.0, "pictures": 0, "image_size": 64}
"""A run of two steps."""

Command = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def nothing_but_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a check of the network nor a report, for which other tests are."""
    monkeypatch.setattr(Pretraining, "check", lambda *_: None)
    monkeypatch.setattr("sparkmim.pretraining.task.write_report", lambda _: None)


def flags(**settings: Any) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def command(images: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Give the command `sparkmim pretrain`; its exit code and what it said."""

    def give(output: Path, more: Sequence[str] = (), *, full: bool = True, **settings: Any) -> tuple[int, str]:
        own = flags(**(SETTINGS | {"data": images} | settings)) if full else flags(**settings)
        named = {word for word in more if word.startswith("--")}
        pairs = [own[i : i + 2] for i in range(0, len(own), 2) if own[i] not in named]
        capsys.readouterr()
        place = [] if "--output" in more else ["--output", str(output)]
        words = ["pretrain", *place, *(word for pair in pairs for word in pair), *more]
        code = printed(run_command, words)
        said = capsys.readouterr()
        return code, said.err + said.out

    return give


def advised(text: str, pattern: str, elsewhere: Path | None = None) -> list[str]:
    """The flags of a message that a pattern finds; NEW is a folder that does not exist."""
    found = re.search(pattern, text)
    assert found is not None, text
    return [str(elsewhere) if word == "NEW" else word for word in shlex.split(found[0])]


def begun(output: Path, images: Path, **settings: Any) -> Path:
    """A run that was stopped after its first step."""
    chosen = TINY_PRETRAIN | {"data": images, "epochs": 0.8, "warmup_epochs": 0.0, "pictures": 0} | settings
    pretrain(output, chosen=chosen, after_step=interrupt_at(1))
    return output


def out_of_memory(monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
    """Micro-batches of more images than fit exhaust the memory."""
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        if self.task.micro_batch > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, batches)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize(("way", "saved"), [("accumulate", True), ("batch-size", False), ("batch-size", True)], ids=str)
def test_out_of_memory(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, command: Command, way: str, saved: bool
) -> None:
    run = tmp_path / "run"
    if saved:
        begun(run, images)
    out_of_memory(monkeypatch, 2)
    code, said = command(run)
    assert code == 3
    pattern = r"--accumulate \d+" if way == "accumulate" else r"(--resume \S+ --output NEW )?--batch-size \d+(?=\.)"
    remedy = advised(said, pattern, tmp_path / "new")
    assert ("--resume" in remedy) == (saved and way == "batch-size")
    code, said = command(run, remedy)
    assert code == 0, said


def test_too_many_broken_images(tmp_path: Path, command: Command) -> None:
    images = make_images(tmp_path / "images")
    for number in range(3):
        (images / f"{number}.png").write_bytes(b"no image")
    code, said = command(tmp_path / "run", data=images)
    assert code == 3
    assert command(tmp_path / "run", advised(said, r"--max-broken [\d.]+\d"), data=images)[0] == 0


def test_a_loss_that_is_not_finite(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    run = begun(tmp_path / "run", images)
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        result = original(self, batches)
        return result._replace(loss=result.loss / 0) if self.config.optimizer.lr > 0.009 else result

    monkeypatch.setattr(Trainer, "train_step", train_step)
    code, said = command(run)
    assert code == 3
    assert command(run, advised(said, r"--resume \S+ --output NEW --lr [\d.]+\d", tmp_path / "new"))[0] == 0
    assert final(tmp_path / "new")["step"] == 2


@pytest.mark.parametrize("saved", [False, True], ids=["at-first", "later"])
def test_gradients_that_are_never_finite(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, command: Command, saved: bool
) -> None:
    run, long = tmp_path / "run", {"precision": "16-mixed", "epochs": 4.0}
    if saved:
        begun(run, images, **long)
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        result = original(self, batches)
        return result._replace(grad_norm=result.grad_norm / 0) if self.config.run.precision != "32" else result

    monkeypatch.setattr(Trainer, "train_step", train_step)
    monkeypatch.setattr(loop, "MAX_SKIPPED", 3)
    code, said = command(run, **long)
    assert code == 3
    assert "the gradients of 3 steps in a row, up to step" in said
    remedy = advised(said, r"(--resume \S+ --output NEW )?--precision 32", tmp_path / "new")
    code, said = command(run, remedy, **long)
    assert code == 0, said


@pytest.mark.parametrize("way", ["init", "resume", "output alone"])
def test_another_configuration(tmp_path: Path, images: Path, command: Command, way: str) -> None:
    """A run that was stopped, with more epochs; one that is done goes on."""
    run = begun(tmp_path / "run", images)
    code, said = command(run, epochs=1.6)
    assert code == 2
    assert "epochs: 0.8 there, 1.6 asked for" in said
    if way == "output alone":
        assert command(run, full=False)[0] == 0
        return
    new = tmp_path / "new"
    remedy = advised(said, rf"--{way} \S+\w")
    code, said = command(new, remedy, epochs=1.6)
    assert code == 0, said
    assert final(new)["step"] == 4
    assert ("continuing after step 1 of 4" in said) == (way == "resume")


def test_settings_of_another_model(tmp_path: Path, images: Path, command: Command) -> None:
    run = begun(tmp_path / "run", images)
    newest = str(RunFolder(run).list_checkpoints()[-1])
    code, said = command(tmp_path / "new", ["--resume", newest], decoder_width=64)
    assert code == 2
    remedy = [word.replace("RUN", str(run)) for word in advised(said, r"--init \S+")]
    code, said = command(tmp_path / "new", remedy, decoder_width=64)
    assert code == 0, said
    assert "the decoder of" in said
    assert "does not fit this model" in said


def test_a_folder_without_a_checkpoint_takes_new_settings(tmp_path: Path, images: Path, command: Command) -> None:
    """And other images: nothing is trained yet."""

    def die(*_: object) -> None:
        raise KeyError("at the first step")

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", die)
        with pytest.raises(KeyError):
            command(run)
    fewer = make_images(tmp_path / "fewer", 8)
    code, said = command(run, data=fewer, batch_size=2, model="test_convnext", epochs=0.5)
    assert code == 0, said
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", die)
        with pytest.raises(KeyError):
            command(tmp_path / "other")
    code, said = command(tmp_path / "other", lr=0.02, full=False)  # the rest is as recorded
    assert code == 0, said
    assert final(tmp_path / "other")["step"] == 2


@pytest.mark.parametrize("accumulate", [3, 8])
def test_parts_that_do_not_divide(tmp_path: Path, images: Path, command: Command, accumulate: int) -> None:
    run = begun(tmp_path / "run", images)
    code, said = command(run, ["--accumulate", str(accumulate)])
    assert code == 2
    (last,) = advised(said, r"\d+$")
    code, said = command(run, ["--accumulate", last])
    assert code == 0
    assert "from here on steps are computed in other parts (4 of 1, batch norm over 1 now, 1 of 4, " in said


def test_one_value_per_channel(tmp_path: Path, images: Path, command: Command) -> None:
    """It is found before the folder is written."""
    one = {"mask_ratio": 0.75, "batch_size": 1, "epochs": 0.4}
    code, said = command(tmp_path / "run", **one)
    assert code == 2
    assert "batch norm would see one value per channel" in said
    assert not (tmp_path / "run").exists()
    code, said = command(tmp_path / "run", advised(said, r"--batch-size \d+(?=, or)"), **one)
    assert code == 0, said


def test_a_file_that_was_resumed_from_before(tmp_path: Path, images: Path, command: Command) -> None:
    """A scheduler gives the same command again, and the run comes to its end."""
    run = begun(tmp_path / "run", images, epochs=1.6, keep_checkpoints=9)
    file = str(RunFolder(run).list_checkpoints()[-1])
    new = tmp_path / "new"
    pretrain(new, resume=file, after_step=interrupt_at(2))
    code, said = command(new, ["--resume", file], full=False)
    assert code == 0
    assert "was resumed from" in said
    assert "continuing after step 2 of 4" in said
    code, said = command(tmp_path / "again", ["--resume", file], full=False)
    assert "continuing after step 1 of 4" in said


def test_a_file_of_the_same_step_is_taken(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the folder's own checkpoint of that step, also if the run ends before the next one."""
    one, other = begun(tmp_path / "one", images), begun(tmp_path / "other", images, seed=2)
    file = RunFolder(other).list_checkpoints()[-1]
    monkeypatch.setattr(loop.TrainingLoop, "train", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain(one, resume=str(file))
    mine, wanted = final(one), final(other)
    assert mine["step"] == 1
    assert all(torch.equal(mine["model"][name], tensor) for name, tensor in wanted["model"].items())


def test_a_checkpoint_is_freed_once_it_is_read(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "run", images)
    read: list[weakref.ref[torch.Tensor]] = []
    original = run_folder.read_checkpoint

    def read_checkpoint(path: Path) -> Any:
        state = original(path)
        read.extend(weakref.ref(tensor) for tensor in state["model"].values())
        return state

    monkeypatch.setattr(run_folder, "read_checkpoint", read_checkpoint)
    alive: list[int] = []
    pretrain(run, after_step=lambda _: alive.append(sum(tensor() is not None for tensor in read)))
    assert len(read) > 50
    assert alive == [0]


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "Stale file handle"), MemoryError()], ids=["stale", "memory"])
def test_a_checkpoint_that_cannot_be_read_for_the_moment(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, command: Command, error: Exception
) -> None:
    """It is kept, under another name, and the reason is told; if none can be read, nothing is done."""
    run = tmp_path / "run"
    pretrain(
        run,
        chosen=TINY_PRETRAIN | {"data": images, "checkpoint_minutes": 0.0, "pictures": 0},
        after_step=interrupt_at(3),
    )
    newest = RunFolder(run).list_checkpoints()[-1]
    content = newest.read_bytes()
    original, unreadable = torch.load, {newest.name}

    def load(path: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(path).name in unreadable:
            raise error
        return original(path, *args, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    with monkeypatch.context():
        unreadable |= {path.name for path in RunFolder(run).list_checkpoints()}
        code, said = command(run, full=False)
        assert code == 2
        assert "Give the same command again when that is mended" in said
        unreadable &= {newest.name}
    code, said = command(run, full=False)
    assert code == 0
    reason = "Stale file handle" if isinstance(error, OSError) else "there is not enough memory"
    assert re.search(rf"step-000000003\.pt cannot be read \(.*{reason}.*older step-000000002\.pt, and keeping it", said)
    assert (newest.parent / f"{newest.name}.unreadable").read_bytes() == content
    assert final(run)["step"] == 6


# --- what is found out between two commands --------------------------------------------------------------------------


def test_a_network_whose_file_has_moved(tmp_path: Path, images: Path, command: Command) -> None:
    net, moved = tmp_path / "net.py", tmp_path / "moved.py"
    net.write_text("import timm\ndef build():\n    return timm.create_model('test_resnet', num_classes=0)\n")
    run = begun(tmp_path / "run", images, model=f"{net}:build")
    net.rename(moved)
    for full in (True, False):
        code, said = command(run, full=full, model=f"{moved}:build")
        assert code == 2
        remedy = advised(said, r"--resume \S+ --model \S+")
    remedy[-1] = remedy[-1].replace("FILE.py", str(moved))
    code, said = command(tmp_path / "new", remedy, full=False)
    assert code == 0, said
    assert "continuing after step 1 of 2" in said


def test_a_file_that_newer_checkpoints_have_displaced(tmp_path: Path, images: Path, command: Command) -> None:
    """A run goes back within its own folder; the scheduler's next command does not find the file any more."""
    run = begun(tmp_path / "run", images, epochs=2.0, keep_checkpoints=1)
    file = RunFolder(run).list_checkpoints()[-1]
    pretrain(run, resume=str(file), after_step=interrupt_at(3))
    assert not file.exists()
    code, said = command(run, ["--resume", str(file)], full=False)
    assert code == 0, said
    assert "continuing after step 3 of 5" in said


def test_another_recipe_in_a_folder_without_a_checkpoint(tmp_path: Path, images: Path, command: Command) -> None:
    """It is not passed over in silence."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command(run)
    code, said = command(run, ["--recipe", "fast"], full=False)
    assert code == 2
    assert "give the whole command again" in said
    code, said = command(run, ["--recipe", "fast"])
    assert code == 0, said
    assert json.loads((run / "config.json").read_text())["recipe"] == "fast"


def test_settings_that_change_no_number_may_change(tmp_path: Path, command: Command, images: Path) -> None:
    """All of them, after a stop in the midst of an evaluation whose evaluators are gone then."""
    labeled = make_split(tmp_path / "labeled", 2)
    run = tmp_path / "run"
    original = loop.TrainingLoop._evaluate

    def stopped(self: loop.TrainingLoop, number: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(self, number)

    watched = {"val_share": 0.4, "val_every": 0.4, "monitor": "knn", "monitor_data": labeled, "monitor_every": 0.4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "_evaluate", stopped)
        assert command(run, epochs=2.0, **watched)[0] == 75
    assert final(run)["unmeasured"] == ["measure_held_out", "measure_monitor"]
    others = {
        "accumulate": 2,
        "grad_checkpointing": "off",
        "memory_efficient": "off",
        "cudnn_benchmark": "off",
        "compile": "off",
        "device": "auto",
        "log_every": 2,
        "val_every": 3.0,
        "checkpoint_minutes": 5.0,
        "keep_checkpoints": 3,
        "time_limit": 60.0,
        "pictures": 2,
        "monitor": "none",
        "workers": 1,
        "max_broken": 0.2,
        "max_pixels": 10**6,
        "cache_gb": 1.0,
        "data": images.parent / images.name,
    }
    resumable = {name for name, setting in PretrainConfig.settings().items() if setting.resumable}
    apart = {"val_data", "monitor_data", "monitor_every", "store", "teacher_store", "log"}  # log needs a package
    assert resumable - others.keys() == apart
    code, said = command(run, full=False, **others)
    assert code == 0, said
    assert final(run)["step"] == 3


# --- work that is not lost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("what", ["a few", "all"])
def test_images_that_vanish(tmp_path: Path, command: Command, what: str, workers: int) -> None:
    """The last finished step is saved before the run stops; with the images back, it goes on as if nothing were."""
    images = make_images(tmp_path / "images")
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        if self.step == 1:
            for path in sorted(images.iterdir())[: None if what == "all" else 4]:
                path.unlink()
        return original(self, batches)

    more = {"data": images, "epochs": 4.0, "accumulate": 2, "workers": workers}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        code, said = command(tmp_path / "run", **more)
    assert code == 3
    newest = RunFolder(tmp_path / "run").list_checkpoints()[-1]
    assert f"Last good state: {newest}" in said
    make_images(images)
    if what == "all":
        assert command(tmp_path / "run", full=False)[0] == 0
        command(tmp_path / "whole", **more)
        assert_same_training(tmp_path / "run", tmp_path / "whole")
    else:
        assert command(tmp_path / "run", advised(said, r"--max-broken [\d.]+\d"), full=False)[0] == 0
    assert final(tmp_path / "run")["step"] == 10


@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_a_folder_that_is_renamed_while_a_run_trains_in_it(
    tmp_path: Path, command: Command, images: Path, how: str
) -> None:
    """What is saved later can be resumed."""
    run = tmp_path / "run"
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        if self.step == 2:
            run.rename(tmp_path / "renamed") if how == "renamed" else shutil.rmtree(run)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        code, said = command(run, epochs=2.0)
    assert code == 75, said
    assert "was moved or emptied while this run trained in it" in said
    code, said = command(run, full=False)
    assert code == 0, said
    assert final(run)["step"] == 5
