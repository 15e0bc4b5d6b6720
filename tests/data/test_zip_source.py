"""The example of a source of one's own."""

from __future__ import annotations

import multiprocessing
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from helpers import FOUR_STEPS, make_images, numbers
from sparkmim.data.config import DataConfig
from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.loader import MaskedViews, PlainViews, _collate_plain, plain_batches, training_batches
from sparkmim.data.sampler import Positions
from sparkmim.data.sources.address import open_source, source_type
from sparkmim.data.sources.base import ImageSource
from sparkmim.data.sources.folder import find_images
from sparkmim.data.views import evaluation_view, training_view
from sparkmim.data.workers import Loader
from sparkmim.evaluation.features import embed
from sparkmim.pretraining.reconstruct import reconstruct
from sparkmim.pretraining.run import pretrain

EXAMPLE = Path(__file__).parents[2] / "examples" / "zip_source.py"
CONFIG = DataConfig(image_size=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), 24)


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("zip") / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"photos/{file.name}")
        archive.writestr("photos/.hidden.png", b"")
        archive.writestr("notes.txt", b"")
        archive.writestr("other/broken.png", b"nothing")
    return f"{EXAMPLE}:ZipImages://{path}"


def photos(address: str) -> ImageSource:
    settings_type = source_type(address).settings_type
    assert settings_type is not None
    return open_source(address, settings_type(inside="photos"))


def test_settings_are_documented(address: str) -> None:
    settings_type = source_type(address).settings_type
    assert settings_type is not None
    assert [field.name for field in fields(settings_type)] == ["inside"]


def test_images_are_those_of_the_folder(address: str, folder: Path) -> None:
    zipped, plain = photos(address), find_images(folder)
    assert [zipped.name(i) for i in range(len(zipped))] == [f"photos/{plain.name(i)}" for i in range(len(plain))]
    for index in range(len(plain)):
        assert torch.equal(zipped.open(index).decode(3), plain.open(index).decode(3))
    assert len(open_source(address)) == 25
    with pytest.raises(UnreadableImage):
        open_source(address).open(0).decode(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_through_their_own_handles(address: str, folder: Path, workers: int) -> None:
    positions = Positions(24, 6, 8, 0)
    zipped, plain = photos(address), find_images(folder)
    zipped.open(0)  # the workers fork a process that has the file open
    views = [MaskedViews(source, training_view(CONFIG), 3, (4, 4), 0.6, 0) for source in (zipped, plain)]
    ours, wanted = (list(training_batches(v, positions, n)) for v, n in zip(views, (workers, 0), strict=True))
    for a, b in zip(ours, wanted, strict=True):
        assert torch.equal(a.images, b.images)
        assert a.indices == b.indices
        assert a.broken == b.broken == []


def test_spawned_workers_import_the_file(address: str, folder: Path) -> None:
    zipped = photos(address)
    zipped.open(0)
    spawned = multiprocessing.get_context("spawn")
    views = PlainViews(zipped, evaluation_view(CONFIG), 3)
    loader = Loader(views, batch_size=8, num_workers=1, collate_fn=_collate_plain, multiprocessing_context=spawned)
    wanted = plain_batches(PlainViews(find_images(folder), evaluation_view(CONFIG), 3), 8, 0)
    for a, b in zip(loader, wanted, strict=True):
        assert torch.equal(torch.cat(a.images), torch.cat(b.images))


def test_pretraining_from_a_zip_file(
    address: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = tmp_path / "photos.zip"
    with zipfile.ZipFile(clean, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    monkeypatch.chdir(tmp_path)
    chosen = FOUR_STEPS | {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    for name, data in (("zip", f"{EXAMPLE}:ZipImages://photos.zip"), ("folder", folder)):
        outcome = pretrain(tmp_path / name, chosen=chosen | {"data": data})
        assert outcome is not None
        assert outcome.step == 4
    assert numbers(tmp_path / "zip") == numbers(tmp_path / "folder")
    # The address is recorded in full, and a run continues from any folder.
    assert f"ZipImages://{clean}" in (tmp_path / "zip" / "config.json").read_text()
    named = reconstruct(tmp_path / "zip", f"{EXAMPLE}:ZipImages://photos.zip")
    assert torch.equal(named.images, reconstruct(tmp_path / "zip", folder, trust=True).images)
    monkeypatch.chdir("/")
    assert pretrain(tmp_path / "zip", chosen={}, trust=True) is not None


def test_features_of_a_zip_file(address: str, folder: Path) -> None:
    zipped, plain = (embed("none", data, model="test_resnet", image_size=64, workers=0) for data in (address, folder))
    assert torch.equal(torch.from_numpy(zipped.features), torch.from_numpy(plain.features))
    assert zipped.names == [f"photos/{name}" for name in plain.names]
    assert [name for name, _ in zipped.skipped] == ["other/broken.png"]


def test_files_that_are_no_zip_are_refused(address: str, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"nothing")
    spec = address.partition("://")[0]
    with pytest.raises(ValueError, match=r"--data .*x\.zip: expected a zip file after ://, got .*x\.zip"):
        open_source(f"{spec}://{tmp_path / 'x.zip'}")
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("a.txt", b"")
    with pytest.raises(ValueError, match=r"y\.zip has no image in the folder /"):
        open_source(f"{spec}://{tmp_path / 'y.zip'}")
