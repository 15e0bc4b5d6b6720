"""Code in the documentation runs, links lead somewhere, and the API reference is complete."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import sparkmim
import sparkmim.sparse
from sparkmim.checkpoints.encoder import save_encoder
from sparkmim.cli import main
from volume_files import phantom, write_nifti

DOCS = Path(__file__).parents[2] / "docs"


def run_blocks(page: str, least: int, **given: object) -> dict[str, Any]:
    """Run the Python blocks of a page in order, and return their names."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= least
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "documentation", **given}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number}", "exec", dont_inherit=True), namespace)
    return namespace


def commands(page: str, name: str) -> list[list[str]]:
    """Return the calls of a command that a page shows."""
    return [shlex.split(line) for line in re.findall(rf"^sparkmim {name} .*$", (DOCS / page).read_text(), re.MULTILINE)]


def test_readme() -> None:
    names = run_blocks("../README.md", 1, loader=[torch.randn(2, 3, 224, 224)])
    assert names["picture"].shape == (2, 3, 224, 224)
    assert len(names["features"]) == 4


def test_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hippocampus" / "images").mkdir(parents=True)
    for index in range(2):
        write_nifti(tmp_path / "hippocampus" / "images" / f"{index}.nii.gz", phantom(index, (40, 40, 30)))
    monkeypatch.chdir(tmp_path)
    assert run_blocks("guides/volumes.md", 1)["crop"].shape == (1, 32, 32, 24)
    assert (tmp_path / "crop.nii.gz").is_file()


def test_your_own_convnet() -> None:
    run_blocks("guides/your-own-convnet.md", 5)


def test_own_decoder() -> None:
    run_blocks("guides/own-decoder.md", 1)


@pytest.mark.usefixtures("kept_rules")
def test_operations() -> None:
    run_blocks("extending/operations.md", 5)


def test_engine() -> None:
    whole = run_blocks("concepts/engine.md", 1)["whole"]
    assert [m.shape[-1] for m in whole] == [112, 56, 28, 14, 7]


def test_objectives() -> None:
    run_blocks("extending/objectives.md", 2)


@pytest.mark.parametrize("page", ["extending/recipes.md", "guides/pretraining.md"])
def test_recipes(page: str) -> None:
    assert callable(run_blocks(page, 1)["short"])


def test_finetuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "classifier").mkdir(parents=True)
    network = timm.create_model("resnet18", num_classes=10)
    save_file(network.state_dict(), tmp_path / "runs" / "classifier" / "model.safetensors")
    run_blocks("guides/finetuning.md", 2)


def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"model": "resnet50", "image_size": [224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    torch.manual_seed(0)
    encoder = timm.create_model("resnet50", num_classes=0)
    save_encoder(encoder, tmp_path / "runs" / "mine" / "encoder.safetensors", {"sparkmim": json.dumps(known)})
    other = timm.create_model("resnet50d", num_classes=0)
    known["model"] = "resnet50d"
    save_encoder(other, tmp_path / "runs" / "resnet50d" / "encoder.safetensors", {"sparkmim": json.dumps(known)})
    everything = commands("guides/export.md", "export")
    shown = [command for command in everything if "--encoder" in command]
    assert len(shown) == 7
    assert len(everything) - len(shown) == 6, "those of whole models are tested in tests/exporters"
    for command in shown:
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
    run_blocks("guides/export.md", 2)


PAGES = sorted([*DOCS.parent.glob("*.md"), *DOCS.rglob("*.md"), DOCS.parent / "benchmarks" / "README.md"])


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the site and code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https:"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            published = (DOCS.resolve(), DOCS.parents[0].resolve() / "benchmarks" / "results")  # by docs/hooks.py
            assert page.parent == DOCS.parent or any(target.resolve().is_relative_to(f) for f in published), link
            assert not anchor or anchor in anchors(target), link


def test_api_reference_has_every_public_name() -> None:
    """Names that are not documented are not public: the reference and `__all__` say the same."""
    reference = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"^::: (sparkmim(?:\.sparse)?\.\w+)$", reference, re.MULTILINE))
    elsewhere = {"recipes", "sparse", "UnsupportedOperation"}  # modules, and a name that sparkmim.sparse has
    public = {f"sparkmim.{name}" for name in set(sparkmim.__all__) - elsewhere if not name.startswith("__")}
    public |= {f"sparkmim.sparse.{name}" for name in sparkmim.sparse.__all__} - NOT_SHOWN
    assert documented - public == set()
    assert public - documented == set()


NOT_SHOWN = {"sparkmim.sparse.register", "sparkmim.sparse.rules"}
"""A method of Execution under another name, and the module that fills the registry."""
