"""Fixtures that tests of several packages share; functions are in helpers.py."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import TINY_PRETRAIN, make_data, make_images
from sparkmim.pretraining.run import pretrain
from sparkmim.sparse.registry import RULES


class _NotAFolderOfTests(MetaPathFinder):
    """Keeps `import sparse`, which SciPy tries, from finding tests/sparse in place of PyData's package."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "sparse":
            return None
        found = PathFinder.find_spec(
            name, [p for p in sys.path if Path(p).resolve() != Path(__file__).parent.resolve()]
        )
        if found is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found


sys.meta_path.insert(0, _NotAFolderOfTests())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Spell out names of files that are not UTF-8, which pytest-xdist cannot pass on."""
    report = yield
    report.sections = [(title, _printable(text)) for title, text in report.sections]
    if report.failed and _printable(str(report.longrepr)) != str(report.longrepr):
        report.longrepr = _printable(str(report.longrepr))
    return report


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The tensors are small, and sums are in the same order everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def terminal() -> Iterator[None]:
    """A closed terminal is not ignored, as it is where the tests are run by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        pytest.skip("older Dynamos cannot trace all that the engine does; README and docs/concepts/engine.md say so")
    torch._dynamo.reset()
    torch._dynamo.variables.torch.get_overridable_functions.cache_clear()  # what was shown to modes is hidden again
    yield
    torch._dynamo.reset()


@pytest.fixture
def kept_rules() -> Iterator[None]:
    """Rules of the engine that a test registers or removes are put right afterwards."""
    rules = {function: dict(by_class) for function, by_class in RULES.items()}
    yield
    RULES.clear()
    RULES.update(rules)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("labeled"))


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Callable[..., Path]:
    """The folder of a run from the first step to the last, made once for the same settings."""
    made: dict[str, Path] = {}

    def get(**settings: Any) -> Path:
        key = json.dumps(settings, sort_keys=True, default=str)
        if key not in made:
            folder = tmp_path_factory.mktemp("uninterrupted") / "run"
            outcome = pretrain(folder, chosen=TINY_PRETRAIN | {"data": images} | settings)
            assert outcome is not None
            assert outcome.step == outcome.steps
            assert outcome.interrupted is None
            made[key] = folder
        return made[key]

    return get
