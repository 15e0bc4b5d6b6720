"""Files from strangers that describe data: lists, tables, annotations, headers of archives.

Each is read in little memory and time. What claims more than it holds, stands for more than any memory, or is no
text of its kind is refused in words that name the file.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limits import limited
from sparkmim.commands.results import check_output
from sparkmim.data.detection.coco import read_coco
from sparkmim.data.detection.opening import Source, read_splits
from sparkmim.data.detection.voc import read_xml
from sparkmim.data.detection.yolo import find_folders, read_yaml, read_yolo
from sparkmim.data.segmentation.classes import read_classes
from sparkmim.data.segmentation.drawn import read_annotations
from sparkmim.data.sources.zipped import open_zip
from sparkmim.data.storage.tar_index import MAGIC, TarIndex, build_index, map_index
from sparkmim.data.teachers.maps import read_identity
from sparkmim.pretraining.teachers import _is_transformers, _json_of
from sparkmim.training.resume import _steps_planned, processes_of

GIBS = 3 * 2**30

DEEP = "[" * 100_000 + "]" * 100_000

DIGITS = "9" * 400
"""Of a number that is whole and beyond what a floating-point number holds."""

MANY_DIGITS = "9" * 5000
"""More than Python reads as a number."""


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "PNG")
    return file.getvalue()


PNG = picture()

# --- YAML ------------------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 10)
)
"""Some lines that stand for three billion values."""

YAML = {
    "aliases as a split": f"{BOMB}train: *a9\nnames: [dark]\n",
    "aliases as names": f"{BOMB}train: images\nnames: *a9\n",
    "aliases in names": f"{BOMB}train: images\nnames: [*a9, dark]\n",
    "aliases by number": f"{BOMB}train: images\nnames: {{0: *a9}}\n",
    "aliases as a folder": f"{BOMB}path: *a9\ntrain: images\n",
    "deep": f"train: images\nnames: {DEEP[:1000]}{DEEP[-1000:]}\n",
    "long": f"train: images\nnames: [{'dark, ' * 200_000}light]\n",
    "numbers and words": "train: images\nnames: {0: dark, a: light}\n",
    "a list of lists": "train: images\nnames: [[dark], light]\n",
    "a table as a split": "train: {a: b}\nnames: [dark]\n",
    "a table as a folder": "path: {a: b}\ntrain: images\nnames: [dark]\n",
    "code": "train: !!python/object/apply:os.system ['true']\nnames: [dark]\n",
}


@pytest.mark.parametrize("name", YAML)
def test_yaml(name: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "data.yaml"
    path.write_text(YAML[name])
    with pytest.raises(ValueError, match=r"data\.yaml"):
        limited(lambda: read_yaml(path))


WORDS = ["yes", "no", "on", "Off", "010", "1.0", "1e3", "12:30", "null", "~", "2020-01-01", "2001-99-99", MANY_DIGITS]
"""Names that YAML takes for booleans, numbers, times, nothing and dates, where it is not told that they are text."""


@pytest.mark.parametrize("form", ["names: [{}]", "names: {{0: {}}}", "names: {{'0': \"{}\"}}", "names:\n  - '{}'"])
@pytest.mark.parametrize("word", WORDS, ids=[word[:12] for word in WORDS])
def test_names_stay_as_they_are_written(word: str, form: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "data.yaml"
    path.write_text(f"path:\ntrain: images\nval: null\ntest: ~\nnc: 1\n{form.format(word)}\n")
    (place,) = read_yaml(path).values()
    assert place.names == (word,)


def test_names_by_number_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "data.yaml"
    path.write_text("train: images\nnames: {1: light, 0: dark}\n")
    assert read_yaml(path)["train"].names == ("dark", "light")


def yolo_of(root: Path, labels: str) -> Path:
    for name in ("images", "labels"):
        (root / name).mkdir()
    (root / "images" / "1.png").write_bytes(PNG)
    (root / "labels" / "1.txt").write_text(labels)
    return root


@pytest.mark.parametrize("number", ["1e15", "100000000000", DIGITS, "-1", "nan"])
def test_numbers_of_classes_that_cannot_be(number: str, tmp_path: Path) -> None:
    place = find_folders(yolo_of(tmp_path, f"{number} 0.5 0.5 0.1 0.1\n"))["all"]
    with pytest.raises(ValueError, match="class"):
        limited(lambda: read_yolo(place))


# --- XML -------------------------------------------------------------------------------------------------------------

BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"

XML = {
    "an entity of a file": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
    "entities": '<!DOCTYPE a [<!ENTITY x "lol"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>',
    "an unknown encoding": '<?xml version="1.0" encoding="foo"?><annotation/>',
    "an encoding of several bytes": '<?xml version="1.0" encoding="utf-32"?><annotation/>',
    "deep": f"<annotation>{'<a>' * 200_000}{'</a>' * 200_000}</annotation>",
    "cut off": "<annotation><object>",
    "infinite": f"<annotation><object><name>a</name>{BOX.replace('9', 'inf')}</object></annotation>",
}


@pytest.mark.parametrize("name", XML)
def test_xml(name: str, tmp_path: Path) -> None:
    path = tmp_path / "1.xml"
    path.write_text(XML[name])
    with pytest.raises(ValueError, match=r"1\.xml"):
        limited(lambda: read_xml(path))


@pytest.mark.parametrize("side", ["1e999", "nan", "-4", "many", MANY_DIGITS])
def test_sizes_that_cannot_be_are_not_known(side: str, tmp_path: Path) -> None:
    path = tmp_path / "1.xml"
    size = f"<size><width>{side}</width><height>40</height></size>"
    path.write_text(f"<annotation>{size}<object><name>a</name>{BOX}</object></annotation>")
    assert read_xml(path).size is None


# --- JSON ------------------------------------------------------------------------------------------------------------


def coco(root: Path, annotation: dict[str, Any] | None = None, image: dict[str, Any] | None = None) -> Path:
    """Write a COCO file; values that begin with `RAW` stand in it as they are."""
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 40, "width": 40} | (image or {})],
        "categories": [{"id": 1, "name": "dark"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "segmentation": [[1, 1, 9, 1, 9, 9]]}
            | (annotation or {})
        ],
    }
    (root / "1.png").write_bytes(PNG)
    path = root / "labels.json"
    path.write_text(json.dumps(content).replace('"RAW ', "").replace(' RAW"', ""))
    return path


COCO: dict[str, dict[str, Any]] = {
    "an image that is a list": {"image_id": [1]},
    "a category that is a table": {"category_id": {}},
    "a box beyond numbers": {"bbox": [1, 1, f"RAW {DIGITS} RAW", 9]},
    "a polygon beyond numbers": {"segmentation": [[1, 1, f"RAW {DIGITS} RAW", 1, 9, 9]]},
    "a polygon of gigabytes": {"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9, 0, 1e9]]},
    "a polygon far away": {"segmentation": [[1e300, 1e300, 1e300, 1e300, 1e300, 1e300], [1, 1, 9, 1, 9, 9]]},
    "a polygon to and fro": {"segmentation": [[0, 0, 16_000_000, 0] * 10]},
    "run lengths of more pixels": {"segmentation": {"size": [10**9, 10**9], "counts": [10**18]}},
    "many digits": {"area": f"RAW {MANY_DIGITS} RAW"},
    "deep": {"area": f"RAW {DEEP} RAW"},
}


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("name", COCO)
def test_coco(name: str, task: str, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    path = coco(tmp_path, COCO[name])
    source = Source(str(path), None, None, None, None, 0)
    with pytest.raises(ValueError, match=r"labels\.json"):
        limited(lambda: read_splits(source, 0) if task == "detection" else read_annotations(path, None))


@pytest.mark.parametrize("side", [-1, 0, 1e30, f"RAW {DIGITS} RAW", "many", None, [3]])
def test_stated_sizes_that_cannot_be_are_not_known(side: object, tmp_path: Path) -> None:
    assert read_coco(coco(tmp_path, image={"height": side}), None).images[0].size is None


@pytest.mark.parametrize("labels", [{"a": -1, "b": 1}, {"a": 0, "b": 10**9}, {"0": "a", MANY_DIGITS: "b"}])
def test_indices_that_masks_cannot_hold(labels: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": labels}))
    with pytest.raises(ValueError, match=r"dataset\.json: expected an index from 0 to"):
        read_classes(path, 255)


TABLES = {
    "many.csv": "".join(f"class {number},{number % 65_000}\n" for number in range(100_000)),
    "digits.csv": f"a,{MANY_DIGITS}\nb,1\n",
    "color.csv": f"a,0,{MANY_DIGITS} 0 0\nb,1,0 0 0\n",
    "deep.json": DEEP,
    "cut.json": "{",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_classes(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(TABLES[name])
    with pytest.raises(ValueError, match=name):
        limited(lambda: read_classes(path, 255))


OWN = ["", "{", "[]", "3", "null", DEEP, '{"steps": null, "processes": null}', '{"steps": 1e999, "processes": 1e999}']


@pytest.mark.parametrize("text", OWN, ids=range(len(OWN)))
def test_what_a_folder_says_of_itself(text: str, tmp_path: Path) -> None:
    """Damaged records of a run, a teacher, a store or an evaluation are as if there were none, or are named."""
    from sparkmim.checkpoints.run_folder import RunFolder

    run = RunFolder(tmp_path)
    (tmp_path / "scores").mkdir()
    for path in (run.plan, run.environment, tmp_path / "config.json", tmp_path / "scores" / "results.json"):
        path.write_text(text)
    (tmp_path / "identity.json").write_text(text)
    assert _steps_planned(run) is None
    assert processes_of({}, run.environment) == 1
    assert not _is_transformers(tmp_path)
    assert not {"size", "license"} & _json_of(tmp_path / "config.json").keys()
    with pytest.raises(ValueError, match=r"results\.json holds the results of something else"):
        check_output(tmp_path / "scores", "knn")
    try:
        assert isinstance(read_identity(tmp_path), dict)
    except ValueError as error:
        assert "identity.json is not JSON" in str(error)  # noqa: PT017 (or it says nothing)


# --- tar files -------------------------------------------------------------------------------------------------------


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """Return the header of a member of any size: beyond 8 GiB in base 256, as GNU's tar writes it."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size if 0 <= size < 8**11 else 0
    found = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    if size >= 8**11:
        found[124:136] = b"\x80" + size.to_bytes(11, "big")
    found[148:156] = b" " * 8
    found[148:156] = b"%06o\0 " % sum(found)
    return bytes(found)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def extended(text: bytes, kind: bytes = b"x") -> bytes:
    """Return an extended header."""
    return header("extended", len(text), kind) + padded(text)


def said(key: str, value: str) -> bytes:
    """Return an entry of an extended header, which begins by its own length."""
    text = f" {key}={value}\n".encode()
    length = len(text)
    while len(str(length)) + len(text) != length:
        length = len(str(length)) + len(text)
    return str(length).encode() + text


MEMBER = header("1.png", len(PNG)) + padded(PNG)

TARS: dict[str, tuple[bytes, int]] = {
    **{f"a header of gibibytes, {kind}": (header("x", GIBS, kind.encode()), GIBS) for kind in "xgLK"},
    "a size of many digits": (extended(said("size", MANY_DIGITS)), 0),
    "a size beyond all": (extended(said("size", str(10**30))), 0),
    "a size below zero": (extended(said("size", "-1024")), 0),
    "a size that is no number": (extended(said("size", "1e3")), 0),
    "a size in base 256": (header("0.png", 2**80), 0),
    "a chain": (extended(said("comment", "x")) * 2000, 0),
    "a chain of long names": ((header("././@LongLink", 4, b"L") + padded(b"abc\0")) * 2000, 0),
    "a length of zero": (extended(b"0 path=x\n"), 0),
    "a length beyond all": (extended(b"99999999999999999999 path=x\n"), 0),
    "a sparse file": (extended(said("GNU.sparse.map", "0,1") + said("GNU.sparse.size", str(10**18))), 0),
    "no sparse file": (extended(said("GNU.sparse.map", "a,b") + said("GNU.sparse.size", "z")), 0),
    "another sparse file": (
        extended(said("GNU.sparse.major", "1") + said("GNU.sparse.minor", "0") + said("GNU.sparse.name", "b.png")),
        0,
    ),
    "a path out of it": (extended(said("path", "../1.png")), 0),
    "a class of gibibytes": (header("1.cls", GIBS), GIBS),
}
"""What stands before an image, and how many zeros are between."""


@pytest.mark.parametrize("name", TARS)
def test_headers_of_tar_files(name: str, tmp_path: Path) -> None:
    start, zeros = TARS[name]
    path = tmp_path / "shard.tar"
    with path.open("wb") as file:
        file.write(start)
        file.seek(zeros, 1)
        file.write(MEMBER + bytes(1024))
    with pytest.raises(ValueError, match=r"shard\.tar"):
        limited(lambda: build_index(str(path)))


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        '{"tar": {"size": 1e999, "stamp": ""}, "lengths": [], "several": [], "skipped": 0, "checksum": 0}',
        "[]",
    ],
    ids=["deep", "infinite", "a list"],
)
def test_indexes_of_tar_files(content: str, tmp_path: Path) -> None:
    path = tmp_path / "shard.tar.index"
    path.write_bytes(MAGIC + struct.pack("<Q", len(content)) + content.encode())
    with pytest.raises(ValueError, match="a damaged header"):
        limited(lambda: map_index(path))
    with pytest.raises(ValueError, match="a damaged header"):  # as it comes from a server
        TarIndex.from_buffer(np.frombuffer(path.read_bytes(), np.uint8))


# --- zip files -------------------------------------------------------------------------------------------------------


def zipped(path: Path) -> bytearray:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", PNG)
    return bytearray(path.read_bytes())


def changed(place: int, size: int, value: int) -> Callable[[bytearray], None]:
    """Return what changes a field of the list of members."""

    def change(content: bytearray) -> None:
        start = content.find(b"PK\1\2") + place
        content[start : start + size] = value.to_bytes(size, "little")

    return change


def wide(size: int, packed: int, offset: int) -> Callable[[bytearray], None]:
    """Return what gives a member sizes and a place of 64 bits."""

    def change(content: bytearray) -> None:
        start, end = content.find(b"PK\1\2"), content.find(b"PK\5\6")
        more = struct.pack("<HHQQQ", 1, 24, size, packed, offset)
        entry = content[start : start + 46 + len("1.png")]
        entry[20:24] = entry[24:28] = entry[42:46] = b"\xff" * 4
        entry[30:32] = struct.pack("<H", len(more))
        tail = content[end:]
        tail[12:16] = struct.pack("<L", len(entry) + len(more))
        content[start:] = entry + more + tail

    return change


ZIPS: dict[str, Callable[[bytearray], None]] = {
    "unpacks to 2 GiB": changed(24, 4, 2**31 - 1),
    "has 4 GiB": changed(20, 4, 2**32 - 2),
    "lies at 4 GiB": changed(42, 4, 2**32 - 2),
    "another checksum": changed(16, 4, 5),
    "an unknown method": changed(10, 2, 99),
    "a later version": changed(6, 2, 99),
    "encrypted": changed(8, 2, 1),
    "a name of 64 KiB": changed(28, 2, 65_535),
    "unpacks to all": wide(2**64 - 1, 100, 0),
    "has all": wide(100, 2**64 - 1, 0),
    "has 2^63 bytes": wide(100, 2**63, 0),
    "has 2^62 bytes": wide(100, 2**62, 0),
    "lies at 2^63": wide(100, 100, 2**63),
    "lies at the end of all": wide(100, 100, 2**64 - 2),
}


@pytest.mark.parametrize("name", ZIPS)
def test_lists_of_zip_files(name: str, tmp_path: Path) -> None:
    """A member that is not what the list says is an image that cannot be read, or the file is refused."""
    from sparkmim.data.decoding.encoded import UnreadableImage

    path = tmp_path / "images.zip"
    content = zipped(path)
    ZIPS[name](content)
    path.write_bytes(content)
    try:
        source: Any = limited(lambda: open_zip(str(path)))
    except ValueError as error:
        assert "images.zip" in str(error)  # noqa: PT017 (or the image is unreadable)
        return
    try:
        assert limited(lambda: source.open(0).decode(3)).shape == (3, 40, 40)  # type: ignore[attr-defined]
        assert name == "a name of 64 KiB"  # of which the members' own headers know better
    except UnreadableImage as error:
        assert "zip file" in str(error) or "cut off" in str(error)  # noqa: PT017


def test_a_list_of_gibibytes_in_a_zip_file(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        file.seek(GIBS)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, GIBS - 4, 4, 0))
    with pytest.raises(ValueError, match=r"images\.zip cannot be read as a zip file \(its list of members claims"):
        limited(lambda: open_zip(str(path)))


# --- videos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["sub/other.mp4", "clip.mp4"], ids=["another", "itself"])
def test_lists_of_other_files_are_no_videos(file: str, tmp_path: Path) -> None:
    """FFmpeg opens what they name, and the list itself without end."""
    av = pytest.importorskip("av")
    from sparkmim.data.clips.reading import VideoFile
    from sparkmim.data.decoding.encoded import UnreadableImage

    (tmp_path / "sub").mkdir()
    with av.open(str(tmp_path / "sub" / "other.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    assert VideoFile(tmp_path / "sub" / "other.mp4").measure(3).frames == 3
    (tmp_path / "clip.mp4").write_text(f"ffconcat version 1.0\nfile {file}\n")
    with pytest.raises(UnreadableImage):
        VideoFile(tmp_path / "clip.mp4").measure(3)


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_of_classes_stay_on_their_line() -> None:
    """A class of a stranger's file neither begins a line of the plan, nor fills the terminal."""
    from sparkmim.data.tables import named, shown

    assert shown("da\nrk \x1b[31m") == r"da\nrk \x1b[31m"
    assert len(shown("l" * 100_000)) <= 200
    assert named(["a\n", "b"]) == r"a\n, b"
