"""Files of a run: written whole or not at all, and read with care."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from sparkmim.checkpoints.run_folder import BrokenCheckpoint, RunFolder, identity, read_checkpoint
from sparkmim.utils.io import SUFFIX, write_atomically, write_json, write_text


def state(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "model": {"w": torch.full((64,), float(step))},
        "optimizer": {},
        "precision": {},
        "broken": {},
        "config": "{}",
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [RuntimeError("no"), OSError(28, "full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_system_call_leaves_the_old_file(tmp_path: Path, monkeypatch: Any, call: str) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(*args: Any) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="input/output"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "file", "text")
    assert (tmp_path / "deep" / "file").stat().st_mode & 0o777 == 0o644


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (9, 10, 11, 100, 1000):
        run.save_checkpoint(state(step), step, keep=2)
    assert names(run.checkpoints) == ["step-000000100.pt", "step-000001000.pt"]
    newest = run.newest_checkpoint()
    assert newest is not None
    assert newest[0]["step"] == 1000
    assert newest[1] == run.list_checkpoints()[-1]


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "foreign"])
def test_a_broken_newest_checkpoint_gives_way_to_the_older(tmp_path: Path, damage: str) -> None:
    run = RunFolder(tmp_path)
    run.save_checkpoint(state(1), 1, keep=2)
    newer = run.save_checkpoint(state(2), 2, keep=2)
    content = newer.read_bytes()
    if damage == "foreign":
        torch.save({"weights": torch.zeros(2)}, newer)
    else:
        newer.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"x" * 999}[damage])
    newest = run.newest_checkpoint()
    assert newest is not None
    assert newest[0]["step"] == 1
    with pytest.raises(BrokenCheckpoint, match=r"step-000000002\.pt (cannot be read as|is not) a checkpoint"):
        read_checkpoint(newer)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_broken_newer_checkpoint_does_not_crowd_out_good_ones(tmp_path: Path, keep: int) -> None:
    run = RunFolder(tmp_path)
    run.save_checkpoint(state(5), 5, keep=2)
    run.save_checkpoint(state(9), 9, keep=2).write_bytes(b"broken")
    run.save_checkpoint(state(6), 6, keep)
    assert names(run.checkpoints) == ["step-000000005.pt", "step-000000006.pt"][-keep:]


def test_all_broken_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (1, 2):
        run.save_checkpoint(state(step), step, keep=2).write_bytes(b"broken")
    with pytest.raises(
        BrokenCheckpoint, match=r"no checkpoint of .*000000002.*000000001.*Remove .*checkpoints to start"
    ):
        run.newest_checkpoint()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).newest_checkpoint() is None


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match=r"there is no checkpoint .*nowhere\.pt"):
        read_checkpoint(tmp_path / "nowhere.pt")


def test_metrics_after_a_step_are_forgotten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.truncate_metrics(3)  # there are none yet
    assert not run.metrics.exists()
    lines = [{"step": step, "loss": step / 3} for step in (1, 2, 2, 3, 4, 5)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1, "lo')
    run.truncate_metrics(3)
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == lines[:4]
    run.truncate_metrics(0)
    assert run.metrics.read_text() == ""


def test_partial_files_are_cleaned_away(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.save_checkpoint(state(1), 1, keep=2)
    for folder in (run.root, run.checkpoints):
        (folder / f"file.pt.00c0ffee{SUFFIX}").write_text("half")
    run.clean()
    assert names(run.root) == ["checkpoints"]
    assert names(run.checkpoints) == ["step-000000001.pt"]


def test_a_new_or_empty_folder_holds_no_run(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).read_config() is None
    assert RunFolder(tmp_path / "new").read_config() is None
    (tmp_path / f"config.json.00c0ffee{SUFFIX}").write_text("half")  # all that a crash at the beginning left
    assert RunFolder(tmp_path).read_config() is None


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not a run of sparkmim \(it contains thesis.tex\); use another --output"):
        RunFolder(tmp_path).read_config()
    with pytest.raises(ValueError, match=r"thesis.tex is a file; --output takes a folder"):
        RunFolder(tmp_path / "thesis.tex").read_config()
    with pytest.raises(ValueError, match=r"cannot be created, since .*thesis.tex is a file; use another --output"):
        RunFolder(tmp_path / "thesis.tex" / "deep" / "run").read_config()
    for content in ('{"architectures": ["ResNet"]}', "[1]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match="was not written by sparkmim; use another --output"):
            RunFolder(tmp_path).read_config()
    (tmp_path / "config.json").write_text('{"sparkmim": ')
    with pytest.raises(ValueError, match=r"config.json is not JSON .* use another --output"):
        RunFolder(tmp_path).read_config()
    assert names(tmp_path) == ["config.json", "thesis.tex"]


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"sparkmim": "1", "model": {}})
    assert RunFolder(tmp_path).read_config() == {"sparkmim": "1", "model": {}}


def test_files_of_the_users_own_are_left_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.save_checkpoint(state(1), 1, keep=1)
    own = ["step-000000002-keep.pt", "step-best.pt", "step-000000009.pt.bak", "step-2.pt", "notes.txt"]
    for name in own:
        (run.checkpoints / name).write_bytes(b"mine")
    newest = run.newest_checkpoint()
    assert newest is not None
    assert newest.state["step"] == 1
    run.save_checkpoint(state(3), 3, keep=1)
    assert names(run.checkpoints) == sorted([*own, "step-000000003.pt"])


def test_more_steps_than_nine_digits_are_in_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (999_999_999, 1_000_000_000):
        run.save_checkpoint(state(step), step, keep=2)
    assert [path.name for path in run.list_checkpoints()] == ["step-999999999.pt", "step-1000000000.pt"]


def test_what_a_checkpoint_is_told_by() -> None:
    model = {"weight": torch.arange(6.0).view(2, 3).T, "count": torch.tensor(3)}
    same = {"step": 4, "model": {name: tensor.clone() for name, tensor in model.items()}}
    assert identity(same) == identity({"step": 4, "model": model})
    assert identity({"step": 5, "model": model}) != identity(same)
    same["model"]["count"] += 1
    assert identity({"step": 4, "model": model}) != identity(same)
