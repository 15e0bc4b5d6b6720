from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from archives import names_below, write_parquet
from helpers import make_images, record
from sparkmim.cli import run_command
from sparkmim.data.labels import read_labeled
from sparkmim.data.packing import pack as packing
from sparkmim.data.packing import plan as planning
from sparkmim.data.packing.encoding import encode
from sparkmim.data.packing.pack import pack
from sparkmim.data.sources.address import open_source
from sparkmim.data.sources.base import fingerprint
from sparkmim.data.sources.folder import find_images
from sparkmim.data.storage.tar_index import read_member


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place, name in enumerate(("a", "b ö")):
        make_images(tmp_path / "images" / name, 4, seed=place)
    (tmp_path / "images" / "b ö" / "broken.png").write_bytes(b"nothing")
    np.save(tmp_path / "images" / "a" / "array.npy", np.zeros((3, 8, 8), np.float32))
    return tmp_path / "images"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names_below(folder)}


@pytest.mark.parametrize("workers", [0, 2])
def test_files_are_those_of_the_folder(folder: Path, tmp_path: Path, workers: int) -> None:
    packed = pack(folder, tmp_path / "shards", shard_mb=0.03, workers=workers)
    assert packed.shards > 2
    assert packed.images == 10
    plain, other = find_images(folder), open_source(packed.address)
    assert fingerprint(plain) == fingerprint(other) == fingerprint(open_source(f"wds://{tmp_path}/shards"))
    for index in range(len(plain)):
        assert planning.read_content(other, index) == (folder / plain.name(index)).read_bytes()
    extracted = tmp_path / "extracted"
    for tar in sorted((tmp_path / "shards").glob("*.tar")):  # anybody's tar reads them
        with tarfile.open(tar) as file:
            file.extractall(extracted, filter="data")
    assert contents(extracted) == contents(folder)


def test_an_interrupted_packing_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pack(folder, tmp_path / "whole", shard_mb=0.03, workers=0)
    read, reads = planning.read_content, []

    def interrupted(source: Any, index: int) -> bytes:
        reads.append(index)
        if len(reads) == 5:
            raise KeyboardInterrupt
        return read(source, index)

    monkeypatch.setattr(packing, "read_content", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "shards", shard_mb=0.03, workers=0)
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 1
    (tmp_path / "shards" / "shards-000001.tar").write_bytes(b"of a version without verification")
    (tmp_path / "shards" / "shards-000002.tar.01234567.partial").write_bytes(b"of a crash")
    reads[:] = [0] * 10
    packed = pack(folder, tmp_path / "shards", shard_mb=0.03, workers=0)
    assert 0 not in reads[10:]
    assert packed.images == whole.images
    tars = [{n: c for n, c in contents(tmp_path / name).items() if n.endswith(".tar")} for name in ("whole", "shards")]
    assert tars[0] == tars[1]
    assert not list((tmp_path / "shards").glob("*.partial"))
    with pytest.raises(ValueError, match=r"was packed otherwise \(resize: None there, 8 now\); use another folder"):
        pack(folder, tmp_path / "shards", shard_mb=0.03, resize=8)
    shutil.rmtree(folder / "a")
    with pytest.raises(ValueError, match="holds other images"):
        pack(folder, tmp_path / "shards")


def test_what_was_written_is_read_back(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flipped(location: str, offset: int, size: int, stamp: str) -> bytes:
        content = bytearray(read_member(location, offset, size, stamp))
        content[0] ^= 1
        return bytes(content)

    monkeypatch.setattr(packing, "read_member", flipped)
    with pytest.raises(OSError, match=r"shards-000000\.tar could not be read back \(.* is not what was written\)"):
        pack(folder, tmp_path / "shards", workers=0)
    assert not list((tmp_path / "shards").glob("*.tar*"))


@pytest.mark.parametrize(
    ("settings", "sizes", "extensions"),
    [
        ({"resize": 30}, {(40, 30)}, {".png", ".npy"}),
        ({"quality": 80}, {(80, 60)}, {".jpg", ".npy", ".png"}),
        ({"resize": 20, "quality": 80}, {(27, 20)}, {".jpg", ".npy", ".png"}),
        ({"resize": 100}, {(80, 60)}, {".png", ".npy"}),
    ],
)
def test_images_are_encoded_anew(
    folder: Path, tmp_path: Path, settings: dict[str, int], sizes: set[tuple[int, int]], extensions: set[str]
) -> None:
    packed = pack(folder, tmp_path / "shards", workers=0, **settings)
    source = open_source(packed.address)
    names = [source.name(index) for index in range(len(source))]
    assert {os.path.splitext(name)[1] for name in names} == extensions
    assert [os.path.splitext(name)[0] for name in names] == [os.path.splitext(n)[0] for n in names_below(folder)]
    shown = [source.open(i).decode(3) for i, name in enumerate(names) if "broken" not in name and "array" not in name]
    assert {(image.shape[2], image.shape[1]) for image in shown} == sizes
    first = find_images(folder).open(0).decode(3).float().mean()
    assert abs(shown[0].float().mean() - first) < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_is_encoded_as_it_is_decoded(mode: str, tmp_path: Path) -> None:
    image = Image.radial_gradient("L").resize((40, 30))
    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 7) if mode == "I;16" else image.convert(mode)
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(path, quality=100)
    from sparkmim.data.decoding.images import EncodedFile

    plain = EncodedFile(path).decode(3)
    made = encode(path.read_bytes(), path.name, None, 100)
    if mode == "I;16":
        assert made.extension is None
        return
    assert made.extension == ".jpg"
    difference = EncodedFile(made.content, "x.jpg").decode(3).float() - plain.float()
    assert difference.abs().mean() < 2
    smaller = encode(path.read_bytes(), path.name, 15, None)
    assert EncodedFile(smaller.content, f"x{smaller.extension}").decode(3).shape == (3, 15, 20)
    if "A" in mode:
        assert torch.equal(EncodedFile(smaller.content, "x.png").decode(4)[3].unique(), torch.tensor([255]))


def test_classes_of_other_sources_are_kept(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "a")
    make_images(folder / "a", 2)
    write_parquet(folder, tmp_path / "x.parquet")
    table = tmp_path / "flat.parquet"
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    images = [row["bytes"] for row in rows.column("image").to_pylist()]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": rows.column("label")}), table)
    packed = pack(f"parquet://{table}", tmp_path / "shards", workers=0)
    before, after = read_labeled(f"parquet://{table}"), read_labeled(packed.address)
    assert before.classes == after.classes == ("a", "b ö")
    assert np.array_equal(before.labels, after.labels)
    assert after.source.name(0) == "000000000.png"


def test_what_cannot_be_packed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "shards"
    for settings in ({"shard_mb": 0}, {"resize": 0}, {"quality": 101}, {"workers": -1}):
        with pytest.raises(ValueError, match=r"must be above 0|workers"):
            pack(folder, output, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images of Photographs are not files"):
        pack("builtin://", output)
    with pytest.raises(ValueError, match=r"--output .* is not empty"):
        pack(folder, folder)
    Image.new("RGB", (8, 8)).save(folder / "a" / "0.jpg")
    with pytest.raises(ValueError, match=r"a/0\.jpg and a/0\.png would have the same name"):
        pack(folder, output, quality=90)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"about .* kB will be written, and the disk has 1 kB free"):
        pack(folder, output)
    assert not output.exists()


def test_unreadable_files_are_named_and_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "nowhere.png").symlink_to("nothing")
    lines: list[str] = []
    packed = record(lines, pack, folder, tmp_path / "shards", workers=0)
    assert packed.images == 10
    assert [name for name, _ in packed.skipped] == ["a/nowhere.png"]
    assert any(line.startswith("11 images, about ") for line in lines)
    assert any(line.startswith("not packed: a/nowhere.png: FileNotFoundError") for line in lines)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(folder / "a" / "0.png", folder / "a" / "0.copy.png")
    assert run_command(["pack", str(folder), "--output", str(tmp_path / "x y"), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("11 images, ")
    assert said.endswith(f"in 1 tar file: --data 'wds://{tmp_path}/x y/shards-000000.tar#*'\n")
    assert len(open_source(said.split("'")[1])) == 11
    assert run_command(["pack", str(tmp_path / "nowhere"), "--output", str(tmp_path / "y")]) == 2
    assert "there is no folder" in capsys.readouterr().err
