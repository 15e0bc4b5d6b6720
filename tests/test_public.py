"""What users import: every public name, without torch until one is used; and commands' help without torch at all."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import sparkmim
from helpers import make_images
from sparkmim.cli import COMMANDS
from sparkmim.data.labels import labeled_splits


def run(program: str) -> str:
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return found.stdout


def test_every_public_name_exists() -> None:
    for name in sparkmim.__all__:
        assert getattr(sparkmim, name) is not None
    assert set(sparkmim.__all__) <= set(dir(sparkmim))
    with pytest.raises(AttributeError, match="module 'sparkmim' has no attribute 'nothing'"):
        sparkmim.nothing  # noqa: B018


def test_public_names_are_seen_by_type_checkers() -> None:
    """The names of the block for type checkers are those that are looked up."""
    source = inspect.getsource(sparkmim)
    block = source[source.index("if TYPE_CHECKING:") : source.index("__all__")]
    for name in sparkmim.__all__:
        assert f" {name}" in block, name


def test_importing_the_package_does_not_import_torch() -> None:
    program = "import sparkmim, sys; assert 'torch' not in sys.modules; sparkmim.SparK; assert 'torch' in sys.modules"
    run(program)


def test_submodules_are_found_without_importing_them() -> None:
    run("import sparkmim; sparkmim.sparse.register; sparkmim.recipes.auto")


def test_version() -> None:
    program = "import sys; sys.argv = ['sparkmim', '--version']; from sparkmim.cli import main; main()"
    assert run(program) == f"sparkmim {sparkmim.__version__}\n"


HELP = """
import sys
from sparkmim.cli import run_command
code = run_command({arguments!r})
assert code == {code}, code
assert "torch" not in sys.modules, "torch is imported"
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        *(([name, "--help"], 0) for name in COMMANDS),
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["chekc"], 2),
        (["check", "resnet18", "--precison", "float32"], 2),
        (["knn", "--encoder", "x"], 2),
        (["embed", "--encoder", "x", "--output", "x.txt"], 2),
    ],
    ids=str,
)
def test_help_and_mistakes_do_not_import_torch(arguments: list[str], code: int) -> None:
    run(HELP.format(arguments=arguments, code=code))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_their_help_says(name: str) -> None:
    help_text = inspect.getdoc(import_module(f"sparkmim.commands.{name}").command)
    assert help_text is not None
    assert " ".join(help_text.split("\n\n")[0].split()) == COMMANDS[name]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sparkmim.check("test_resnet", precision="64"), "--precision takes float64 or float32, not '64'"),  # type: ignore[arg-type]
        (lambda: sparkmim.check("test_resnet", in_chans=0), "--in-chans is a number of channels, at least 1, not 0"),
        (lambda: sparkmim.check("test_resnet", stages="layer1"), r"stages takes .* not 'layer1'; write \['layer1'\]"),
        (lambda: sparkmim.load_encoder("none", "test_resnet", stages="layer1"), "stages takes .* not 'layer1'"),
        (lambda: sparkmim.embed("none", model="test_resnet", device="gpu"), "--device takes .*, not 'gpu'"),  # type: ignore[arg-type]
        (lambda: sparkmim.embed("none", model="test_resnet", batch_size="4"), "--batch-size takes int, not '4'"),  # type: ignore[arg-type]
        (lambda: sparkmim.linear_probe("none", "nowhere", seed=-1), "--seed must be at least 0, not -1"),
        (lambda: sparkmim.knn("none", "nowhere", seed=-1), "--seed must be at least 0, not -1"),
    ],
)
def test_bad_values_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_one_set_of_test_images_needs_no_list(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_images(tmp_path / name, 2)
    for paths in (str(tmp_path), tmp_path, [tmp_path]):
        splits = labeled_splits(tmp_path, None, paths)
        assert [len(test) for test in splits.test] == [4]
