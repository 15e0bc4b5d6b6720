"""Flags made from configurations: every field has one, with those of the plug-in that the command line names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tyro

from sparkmim.cli import run_command
from sparkmim.commands import finetune, pretrain
from sparkmim.commands.options import value_of, with_flags
from sparkmim.pretraining.config import PretrainConfig
from sparkmim.transfer.config import FinetuneConfig

EXAMPLES = Path(__file__).parents[2] / "examples"


def parsed(kind: Any, *arguments: str) -> dict[str, Any]:
    """Return the settings that a command receives."""
    found: dict[str, Any] = {}

    def command(output: Path, settings: Any) -> int:
        found.update(settings)
        return 0

    plugins = {name: value_of(arguments, name) for name in ("objective", "task")}
    tyro.cli(with_flags(command, kind, plugins), args=["--output", "x", *arguments])
    return found


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_every_field_has_a_flag(kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(kind, "--help")
    out = capsys.readouterr().out
    for field in kind.describe():
        assert f"--{field.flat.replace('_', '-')} " in out


def test_only_what_is_set_is_passed_on() -> None:
    assert parsed(PretrainConfig) == {}
    found = parsed(
        PretrainConfig, "--batch-size", "8", "--flip", "off", "--betas", "0.9", "0.95", "--densify-norm", "layer"
    )
    assert found == {"batch_size": 8, "flip": False, "betas": (0.9, 0.95), "densify_norm": "layer"}


def test_settings_of_plugins_are_flags() -> None:
    objective = f"{EXAMPLES}/custom_objective.py:Hog"
    found = parsed(PretrainConfig, "--objective", objective, "--objective.cell-size", "4")
    assert found == {"objective": objective, "objective.cell_size": 4}
    with pytest.raises(SystemExit):
        parsed(PretrainConfig, "--objective.cell-size", "4")


def test_the_value_of_a_flag() -> None:
    assert value_of(["--objective", "a", "--task=b"], "objective") == "a"
    assert value_of(["--objective", "a", "--task=b"], "task") == "b"
    assert value_of(["--objective"], "objective") is None
    assert value_of([], "objective") is None


def test_commands_take_the_settings_of_what_they_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for module, flags, setting in (
        (pretrain, ["--objective", f"{EXAMPLES}/custom_objective.py:Hog"], "--objective.bins INT"),
        (finetune, ["--task", f"{EXAMPLES}/regression.py:Regression"], "--task.loss squared|smooth-l1"),
    ):
        name = module.__name__.rpartition(".")[2]
        assert run_command([name, *flags, "--help"]) == 0
        assert setting in capsys.readouterr().out
        assert run_command([name, "--help"]) == 0
        assert setting not in capsys.readouterr().out


def test_unknown_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["pretrain", "--output", "x", "--objective", "pixel"]) == 2
    assert "--objective 'pixel' is unknown" in capsys.readouterr().err


PLUGINS = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from sparkmim import Objective
from sparkmim.objectives.pixels import Pixels


@dataclass(frozen=True, kw_only=True)
class Numbers:
    ALL: ClassVar[tuple[int, ...]] = (1, 2)
    '''Not a field.'''

    n: Literal[1, 2] = 1
    '''A number.'''


@dataclass(frozen=True, kw_only=True)
class Required:
    n: int
    '''A number.'''


@dataclass(frozen=True, kw_only=True)
class Paths:
    where: Path = Path("x")
    '''A path.'''


class Plain:
    n: int = 1


class Good(Pixels):
    settings_type = Numbers


class WithoutDefault(Pixels):
    settings_type = Required


class WithPath(Pixels):
    settings_type = Paths


class NoDataclass(Pixels):
    settings_type = Plain


class Unfinished(Objective):
    pass


class Wrong(Pixels):
    def loss(self, prediction, target, grid):
        raise KeyError("own")
"""


def test_plugins_that_do_not_keep_the_contract(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(PLUGINS)
    tiny = f"--model test_resnet --data {images} --image-size 64 --batch-size 4 --decoder-width 32 --device cpu"
    expected = {
        "WithoutDefault": "expected settings Required to be a dataclass whose fields all have defaults",
        "WithPath": "expected settings Paths to be a dataclass whose fields all have defaults",
        "NoDataclass": "expected settings Plain to be a dataclass whose fields all have defaults",
        "Unfinished": f"expected {file}:Unfinished to define target",
        "Wrong": f"{file}:Wrong fails at line {PLUGINS[: PLUGINS.index('raise')].count(chr(10)) + 1}: KeyError: 'own'",
    }
    for name, message in expected.items():
        command = f"pretrain --output {tmp_path / name} {tiny} --objective {file}:{name}"
        assert run_command(command.split()) == 2
        assert message in capsys.readouterr().err, "which does not blame the network"
    assert parsed(PretrainConfig, "--objective", f"{file}:Good", "--objective.n", "2")["objective.n"] == 2
