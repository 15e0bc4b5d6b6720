"""A run folder that was edited, damaged or made by somebody else: it is refused in words, or does without."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import TINY_PRETRAIN, interrupt_at, make_images
from sparkmim.checkpoints.run_folder import BrokenCheckpoint, RunFolder, identity, read_checkpoint
from sparkmim.checkpoints.state import VALID
from sparkmim.pretraining.config import PretrainConfig
from sparkmim.pretraining.prepare import Pretraining
from sparkmim.pretraining.run import pretrain
from sparkmim.reporting.report.page import write_report
from sparkmim.training.prepare import prepare
from sparkmim.training.recorded import require_sound_run
from sparkmim.utils.io import write_atomically

ODD: list[Any] = [None, 5, -1, 0, 1e308, float("nan"), 10**40, True, "x", "", "a:b", [], [1, 2, 3], [[1]], {}, {"a": 1}]
"""Values that most fields cannot have."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its first step."""
    images = make_images(tmp_path_factory.mktemp("images"))
    run = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "check", lambda *_: None)
        pretrain(run, chosen=TINY_PRETRAIN | {"data": images, "pictures": 0}, after_step=interrupt_at(1))
    return run


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


def places(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from places(value, (*above, name))


@pytest.mark.parametrize("chunk", range(2))
def test_a_configuration_with_odd_values(begun: Path, run: Path, chunk: int) -> None:
    """Each field takes some: the run goes on, or a sentence names the file or the flag."""
    recorded = json.loads((begun / "config.json").read_text())
    chance = random.Random(chunk)
    for place in list(places(recorded))[chunk::2]:
        for odd in chance.sample(ODD, 2):
            edited = copy.deepcopy(recorded)
            group = edited
            for name in place[:-1]:
                group = group[name]
            group[place[-1]] = odd
            (run / "config.json").write_text(json.dumps(edited))
            with suppress(ValueError):  # any other error fails the test
                require_sound_run(PretrainConfig, run, "auto", {}, trust=False)
                ready = prepare(Pretraining(), run, None, "auto", {}, 1)
                assert isinstance(ready.recipe, str), (place, odd)


@pytest.mark.parametrize("part", VALID)
def test_a_checkpoint_with_odd_parts(begun: Path, tmp_path: Path, part: str) -> None:
    """Nothing but what the part can be is read, and what is missing is told."""
    state = read_checkpoint(RunFolder(begun).list_checkpoints()[-1])
    path = tmp_path / "step-000000001.pt"
    sound = [value for value in ODD if VALID[part][0](value)]
    for odd in [value for value in ODD if value not in sound and value == value]:
        write_atomically(path, lambda file, odd=odd: torch.save(state | {part: odd}, file))  # type: ignore[misc]
        with pytest.raises(BrokenCheckpoint, match=rf"is a damaged checkpoint: its {part} is not"):
            read_checkpoint(path)


@pytest.mark.parametrize("chunk", range(4))
def test_a_checkpoint_with_a_bit_flipped_or_cut_off(begun: Path, run: Path, chunk: int) -> None:
    """The older one is taken, unless the bit is one of the padding: torch reads changed weights without a word."""
    older = RunFolder(run).list_checkpoints()[-1]
    content, chance, newest = older.read_bytes(), random.Random(chunk), RunFolder(run).checkpoint(2)
    for number in range(8):
        damaged = bytearray(content)
        if number % 2:
            del damaged[chance.randrange(len(content)) :]
        else:
            bit = chance.randrange(8 * len(content))
            damaged[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(damaged)
        found = RunFolder(run).newest_checkpoint()
        assert found is not None
        assert identity(found.state) == identity(read_checkpoint(older))


def test_checksums_are_written_where_a_program_has_none(begun: Path, run: Path) -> None:
    state = read_checkpoint(RunFolder(begun).list_checkpoints()[-1])
    torch.serialization.set_crc32_options(False)
    try:
        path = RunFolder(run).save_checkpoint(state, 7, 2)
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path)["step"] == state["step"]


def test_an_optimizer_of_other_parameters(run: Path) -> None:
    path = RunFolder(run).list_checkpoints()[-1]
    state = read_checkpoint(path)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"the checkpoint is of another model: exp_avg of shape \(7,\)"):
        pretrain(run)


LINES = ["5", "[]", "null", '{"loss": 1}', '{"step": "x"}', '{"step": 1, "loss": {}}', "[" * 100_000, "\0\0", "\udcff"]
LINES += ['{"step": ' + "9" * 4000 + "}", '{"step": 1, "lo']


def test_lines_of_metrics_that_are_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    whole = '{"step": 1, "epoch": 0.5, "loss": 0.25}'
    run.metrics.write_bytes("\n".join([whole, *LINES]).encode(errors="surrogateescape"))
    write_report(run.root)
    run.truncate_metrics(1)
    assert run.metrics.read_text() == f"{whole}\n"


@pytest.mark.parametrize("name", ["config.json", "plan.json", "environment.json", "results.json"])
@pytest.mark.parametrize("content", ["5", "[" * 100_000, "\0", '{"a": 1}', '{"model": 3, "validation": 5}'])
def test_a_report_of_other_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert write_report(tmp_path).is_file()


def test_files_of_the_user_s_own_stay(tmp_path: Path, run: Path) -> None:
    """A download that is not finished yet ends like the files that a run is writing."""
    own, half = run / "movie.partial", run / "report.html.0123abcd.partial"
    for path in (own, half):
        path.write_text("half")
    RunFolder(run).clean()
    assert own.exists()
    assert not half.exists()
    (tmp_path / "new").mkdir()
    own.rename(tmp_path / "new" / own.name)
    with pytest.raises(ValueError, match=r"is not a run of sparkmim \(it contains movie\.partial\)"):
        RunFolder(tmp_path / "new").read_config()


def test_what_a_folder_names_is_shown_with_its_whole_path(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever resumes a run from elsewhere sees what is read."""
    data = json.loads((run / "config.json").read_text())["data"]["data"]
    caplog.set_level("INFO", logger="sparkmim")
    pretrain(run, plan=True)
    assert f"from         {run / 'config.json'}: --data {data}" in caplog.text
    caplog.clear()
    pretrain(run, plan=True, chosen={"data": data})
    assert f"--data {data}" not in caplog.text
