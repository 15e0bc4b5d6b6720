"""Imports that version 0.1 documented: they work, and warn."""

from __future__ import annotations

from importlib import import_module

import pytest

import sparkmim
from sparkmim.utils.moved import MOVED


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in MOVED.items() for name in names])
def test_old_names_are_the_new_ones(module: str, name: str) -> None:
    home, _, renamed = MOVED[module][name].partition(":")
    new = getattr(import_module(f"sparkmim.{home}"), renamed or name)
    old = import_module(module)
    with pytest.warns(DeprecationWarning, match=rf"{module}.{name} has moved: from sparkmim.{home} import"):
        assert getattr(old, name) is new


def test_imports_of_the_0_1_documentation() -> None:
    with pytest.warns(DeprecationWarning, match=r"from sparkmim.transfer.recipes import Situation"):
        from sparkmim.evaluate.finetune import Situation  # type: ignore[import-not-found]
    with pytest.warns(DeprecationWarning, match=r"from sparkmim.transfer.recipes import small_data"):
        from sparkmim.evaluate.finetune.recipes import small_data  # type: ignore[import-not-found]
    with pytest.warns(DeprecationWarning, match=r"from sparkmim.pretraining.config import PretrainConfig"):
        from sparkmim.train import PretrainConfig  # type: ignore[import-not-found]
    assert Situation.__name__ == "Situation"
    assert callable(small_data)
    assert PretrainConfig.__name__ == "PretrainConfig"


def test_unknown_names_and_modules() -> None:
    import sparkmim.masking  # type: ignore[import-not-found]

    with pytest.raises(AttributeError, match=r"module 'sparkmim.masking' has no attribute 'nothing'"):
        sparkmim.masking.nothing  # noqa: B018
    with pytest.raises(ImportError, match="nothing"):
        import_module("sparkmim.nothing")


def test_new_names_are_not_hidden() -> None:
    """No old module has the name of a public function, which it would replace once imported."""
    assert not {module.partition(".")[2] for module in MOVED} & set(sparkmim.__all__)
