from __future__ import annotations

import os
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from helpers import make_images
from sparkmim.data.sources import address
from sparkmim.data.sources.address import absolute_address, open_source, source_type
from sparkmim.data.sources.base import ImageSource, fingerprint
from sparkmim.data.sources.builtin import Photographs, builtin_photographs
from sparkmim.data.sources.folder import Files, find_images


@pytest.fixture
def source_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(
        textwrap.dedent("""
            from __future__ import annotations
            from dataclasses import dataclass
            from sparkmim.data.sources.base import ImageSource
            from sparkmim.data.sources.folder import Files

            @dataclass(frozen=True)
            class Settings:
                count: int = 2

            class Repeated(Files):
                settings_type = Settings

                @classmethod
                def from_address(cls, rest, settings):
                    if not rest:
                        raise ValueError("expected a file after ://")
                    return cls("", [rest] * settings.count)

            class Endless(ImageSource):
                def __len__(self): ...
                def name(self, index): ...
                def open(self, index): ...

            def function(): ...
        """)
    )
    return path


def test_addresses_without_a_scheme_are_folders(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images")
    wanted = fingerprint(find_images(folder))
    for place in (folder, str(folder), f"folder://{folder}"):
        assert source_type(place) is Files
        assert fingerprint(open_source(place)) == wanted


def test_builtin_photographs_are_the_default() -> None:
    assert source_type(None) is source_type("builtin://") is Photographs
    for place in (None, "builtin://"):
        assert fingerprint(open_source(place)) == fingerprint(builtin_photographs())
    with pytest.raises(ValueError, match="--data builtin://x: expected builtin:// with nothing after it"):
        open_source("builtin://x")


def test_folder_errors_name_the_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere; see --val-data"):
        open_source(tmp_path / "nowhere", option="--val-data")


def test_a_class_in_a_file(source_file: Path) -> None:
    spec = f"{source_file}:Repeated://x.png"
    settings_type = source_type(spec).settings_type
    assert settings_type is not None
    assert settings_type().count == 2
    assert len(open_source(spec)) == 2
    source = open_source(spec, settings_type(count=3))
    assert [source.name(i) for i in range(len(source))] == ["x.png"] * 3


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "fodler://x",
            r"--data fodler://x: unknown scheme 'fodler'; did you mean folder://. Known .*: builtin, clips, folder, gs",
        ),
        (
            "ftp://host",
            r"unknown scheme 'ftp'.* Known schemes: builtin, clips, folder, .*, signals, volumes, wds, zip\. Write FILE\.py:CLASS://\.\.\.",
        ),
        ("nowhere.py:Class://x", r"there is no file 'nowhere\.py'"),
        ("FILE:function://x", "expected .*own.py:function to be a subclass of ImageSource, got <function"),
        ("FILE:Repaeted://x", "own.py defines no class 'Repaeted'"),
        ("FILE:Repeated://", r"--data .*own.py:Repeated://: expected a file after ://"),
        ("FILE:Endless://x", "Endless cannot be opened by address; define its class method from_address"),
        ("collections:Counter://x", "expected collections:Counter to be a subclass of ImageSource"),
    ],
)
def test_what_cannot_be_opened_is_named(source_file: Path, place: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(place.replace("FILE", str(source_file)))


def test_settings_of_another_type_are_refused(source_file: Path) -> None:
    with pytest.raises(ValueError, match="expected settings of type Settings, got int"):
        open_source(f"{source_file}:Repeated://x.png", 3)
    with pytest.raises(ValueError, match="--data builtin://: expected no settings, got int"):
        open_source("builtin://", 3)


def test_entry_points_are_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("plug", "sparkmim.data.sources.builtin:Photographs", "sparkmim.sources")
    monkeypatch.setattr(address, "entry_points", lambda group: [point] if group == "sparkmim.sources" else [])
    assert source_type("plug://") is Photographs
    assert len(open_source("plug://")) == 15
    with pytest.raises(ValueError, match=r"Known schemes: builtin, clips, folder, .*, plug, s3, signals, volumes"):
        source_type("other://")


def test_addresses_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos.zip").write_bytes(b"")
    assert absolute_address("images") == absolute_address(Path("images")) == f"{tmp_path}/images"
    assert absolute_address("folder://images") == f"{tmp_path}/images"
    assert absolute_address("~/images") == os.path.expanduser("~/images")
    for place in ("builtin://", "s3://bucket/photos", f"zip://{tmp_path}/photos.zip"):
        assert absolute_address(place) == place
    assert absolute_address("zip://photos.zip") == f"zip://{tmp_path}/photos.zip"
    assert absolute_address("own.py:Own://photos.zip") == f"{tmp_path}/own.py:Own://{tmp_path}/photos.zip"
    (tmp_path / "shards").mkdir()
    assert absolute_address("own.py:Own://shards") == f"{tmp_path}/own.py:Own://{tmp_path}/shards"
    assert absolute_address("own.py:Own://") == f"{tmp_path}/own.py:Own://"


def test_every_source_is_found_in_its_module() -> None:
    assert set(address._classes()) == {
        *("builtin", "folder", "volumes", "signals", "clips", "list", "mix", "zip", "wds", "parquet", "hf"),
        *("http", "https", "s3", "gs", "memory"),
    }
    assert all(issubclass(kind, ImageSource) for kind in address._classes().values())
