"""What users import: every public name, without torch until one is used; and commands' help without torch at all."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

import sparkmim
from sparkmim.cli import COMMANDS


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
