"""What is wrong with archives, lists and servers is said before a run, and broken files are counted during it."""

from __future__ import annotations

import builtins
import gzip
import io
import os
import shutil
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from archives import serving, write_list, write_members, write_tars, write_zip
from helpers import make_images
from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.loader import MaskedViews
from sparkmim.data.sources.address import open_source
from sparkmim.data.storage import reading
from sparkmim.data.storage.cache import COUNTER, PARTS, Cache, limit_cache
from sparkmim.data.storage.locations import expand_braces
from sparkmim.data.storage.tar_index import index_of, map_index


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    make_images(root / "a", 4)
    make_images(root / "b", 2, seed=1)
    return root


@pytest.fixture(scope="module")
def png(folder: Path) -> bytes:
    return (folder / "a" / "0.png").read_bytes()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    where = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SPARKMIM_CACHE", str(where))
    monkeypatch.delenv("SPARKMIM_CACHE_GB", raising=False)
    monkeypatch.setattr(reading, "WAITS", (0.0, 0.01, 0.01))
    return where


def cut(path: Path, by: int) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - by)


def padded(content: bytes) -> int:
    return -(-len(content) // 512) * 512


# --- tar files ------------------------------------------------------------------------------------------------------


def truncated_in_a_member(path: Path, png: bytes) -> None:
    write_members(path, {"a.png": png, "b.png": png})
    cut(path, path.stat().st_size - 512 - padded(png) - 1000)


def truncated_between_members(path: Path, png: bytes) -> None:
    write_members(path, {"a.png": png, "b.png": png})
    cut(path, path.stat().st_size - 512 - padded(png))


def joined_by_cat(path: Path, png: bytes) -> None:
    one, other = write_members(path, {"a.png": png}).read_bytes(), write_members(path, {"b.png": png}).read_bytes()
    path.write_bytes(one + other)


def damaged_header(path: Path, png: bytes) -> None:
    write_members(path, {"a.png": png, "b.png": png})
    with path.open("r+b") as file:
        file.seek(512 + padded(png))
        file.write(b"xxxx")


def compressed(path: Path, png: bytes) -> None:
    path.write_bytes(gzip.compress(write_members(path, {"a.png": png}).read_bytes()))


def linked(path: Path, kind: bytes) -> None:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)


TARS: dict[str, tuple[Callable[[Path, bytes], Any], str]] = {
    "cut within a member": (truncated_in_a_member, r"x\.tar cannot be read as a tar file \(it is cut off"),
    "cut between members": (truncated_between_members, r"x\.tar is damaged or cut off: its members end at byte \d+"),
    "joined by cat": (joined_by_cat, r"is damaged or cut off: .* use tar -A"),
    "a damaged header": (damaged_header, r"is damaged or cut off: its members end at byte"),
    "compressed": (compressed, "it is compressed, .* decompress it"),
    "not a tar file": (lambda path, _: path.write_bytes(b"nothing" * 1000), r"x\.tar cannot be read as a tar file"),
    "empty": (lambda path, _: path.write_bytes(b""), r"x\.tar cannot be read as a tar file"),
    "a folder up": (lambda path, png: write_members(path, {"../a.png": png}), r"'\.\./a\.png', a name that leads out"),
    "an absolute name": (lambda path, png: write_members(path, {"/a.png": png}), "'/a.png', a name that leads out"),
    "a symbolic link": (lambda path, _: linked(path, tarfile.SYMTYPE), r"a\.png is a link; .*--dereference"),
    "a hard link": (lambda path, _: linked(path, tarfile.LNKTYPE), r"a\.png is a link"),
    "a device": (lambda path, _: linked(path, tarfile.CHRTYPE), r"a\.png is not a plain file"),
    "no images": (lambda path, _: write_members(path, {"a.txt": b"", ".b.png": b""}), "no image in the tar file: 1"),
    "several images": (
        lambda path, png: write_members(path, {"7.jpg": png, "7.seg.png": png}),
        r"the sample 7 has several images, 7\.jpg and 7\.seg\.png; name .* \(#jpg\), or .*\(#\*\)",
    ),
    "a class of two lines": (
        lambda path, png: write_members(path, {"7.png": png, "7.cls": b"a\nb"}),
        r"one class in 7",
    ),
}


@pytest.mark.parametrize("kind", TARS)
def test_tar_files_that_are_refused(kind: str, tmp_path: Path, png: bytes) -> None:
    make, message = TARS[kind]
    make(tmp_path / "x.tar", png)
    with pytest.raises(ValueError, match=message):
        open_source(f"wds://{tmp_path / 'x.tar'}")


def test_equal_names_are_refused(tmp_path: Path, png: bytes) -> None:
    for name in ("x", "y"):
        write_members(tmp_path / f"{name}.tar", {"a.png": png, "b.png": png})
    with pytest.raises(ValueError, match=r"a\.png is in x\.tar and in y\.tar; names must be unique"):
        open_source(f"wds://{tmp_path}/{{x,y}}.tar")
    with tarfile.open(tmp_path / "z.tar", "w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("a.png")
            info.size = len(png)
            tar.addfile(info, io.BytesIO(png))
    with pytest.raises(ValueError, match=r"z\.tar has a\.png twice"):
        open_source(f"wds://{tmp_path}/z.tar")


def test_missing_shards_are_named(folder: Path, tmp_path: Path) -> None:
    write_tars(folder, tmp_path, 3)
    (tmp_path / "shards-0001.tar").unlink()
    with pytest.raises(ValueError, match=r"2 of the 4 files are missing: .*shards-0001\.tar, .*shards-0003\.tar; name"):
        open_source(f"wds://{tmp_path}/shards-{{0000..0003}}.tar")
    for number in (1, 2):
        fsspec.filesystem("memory").pipe(f"/no/s-{number}.tar", b"x")
    with pytest.raises(ValueError, match=r"2 of the 4 files are missing: memory://no/s-0\.tar"):
        open_source("wds://memory://no/s-{0..3}.tar")
    with pytest.raises(ValueError, match=r"there is no file .*nowhere\.tar"):
        open_source("wds://nowhere.tar")
    with pytest.raises(ValueError, match=r"there is no \.tar file in the folder"):
        open_source(f"wds://{folder}")


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{08..11}", ["s-08", "s-09", "s-10", "s-11"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
    ],
)
def test_braces(pattern: str, wanted: list[str]) -> None:
    assert expand_braces(pattern) == wanted


@pytest.mark.parametrize("pattern", ["{3..1}", "{a}", "{}", "{0..99999999}", "{0..9999}{0..9999}"])
def test_odd_braces_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"backward|expected|more than 1,000,000"):
        expand_braces(pattern)


def test_fields_of_samples(tmp_path: Path, png: bytes) -> None:
    members = {"7.png": png, "7.seg.png": png, "8.png": png, "8.seg.png": png, "8.json": b"{}"}
    write_members(tmp_path / "x.tar", members)
    for field, wanted in (
        ("png", ["7.png", "8.png"]),
        ("seg.png", ["7.seg.png", "8.seg.png"]),
        ("*", ["7.png", "7.seg.png", "8.png", "8.seg.png"]),
    ):
        source = open_source(f"wds://{tmp_path}/x.tar#{field}")
        names = [source.name(index) for index in range(len(source))]
        assert names == wanted
    with pytest.raises(ValueError, match=r"no image is named \.jpg; the first are named \.png, \.seg\.png"):
        open_source(f"wds://{tmp_path}/x.tar#jpg")


def test_indexes_are_kept_and_made_anew(tmp_path: Path, png: bytes, cache: Path) -> None:
    tar = write_members(tmp_path / "x.tar", {"a.png": png})
    assert len(open_source(f"wds://{tar}")) == 1
    index = Path(f"{tar}.index")
    first = index.stat().st_mtime_ns
    open_source(f"wds://{tar}")
    assert index.stat().st_mtime_ns == first
    for spoil in (lambda: write_members(tar, {"a.png": png, "b.png": png}), lambda: index.write_bytes(b"x" * 500)):
        spoil()
        assert len(open_source(f"wds://{tar}")) == 2
        assert len(map_index(index)) == 2
    content = bytearray(index.read_bytes())
    for place in range(0, len(content), 7):  # whatever bit of it is flipped
        content[place] ^= 4
        index.write_bytes(content)
        assert len(open_source(f"wds://{tar}")) == 2
        content = bytearray(index.read_bytes())


def test_indexes_lie_in_the_cache_where_folders_cannot_be_written(
    tmp_path: Path, png: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = write_members(tmp_path / "x.tar", {"a.png": png})
    Path(f"{tar}.index").mkdir()  # nothing can take its place
    assert len(index_of(str(tar), cache / "indexes")) == 1
    assert len(list((cache / "indexes").iterdir())) == 1
    (cache / "file").write_bytes(b"")
    assert len(index_of(str(tar), cache / "file")) == 1  # nor here: it is kept in memory


def test_a_tar_file_that_changes_meanwhile_is_not_misread(tmp_path: Path, png: bytes) -> None:
    tar = write_members(tmp_path / "x.tar", {"a.png": png, "b.png": png})
    source = open_source(f"wds://{tar}")
    write_members(tar, {"a.png": png + bytes(512), "b.png": png})
    for index in range(2):
        with pytest.raises(UnreadableImage, match="has changed since it was indexed"):
            source.open(index).decode(3)
    cut(tar, 10_000)
    with pytest.raises(UnreadableImage, match=r"changed|cut off"):
        source.open(1).decode(3)


# --- zip files ------------------------------------------------------------------------------------------------------


def zip_of(
    path: Path, names: list[str], content: bytes, change: Callable[[zipfile.ZipInfo], None] | None = None
) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change is not None:
                change(info)
            archive.writestr(info, content)


def as_link(info: zipfile.ZipInfo) -> None:
    info.external_attr = 0o120777 << 16


def with_bytes(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def encrypted(path: Path, png: bytes) -> None:
    zip_of(path, ["a.png"], png)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)


def huge(path: Path, png: bytes) -> None:
    zip_of(path, ["a.png"], png)
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\1\2") + 24
    content[place : place + 4] = (2**31 + 1).to_bytes(4, "little")
    path.write_bytes(content)


def cut_zip(path: Path, png: bytes) -> None:
    zip_of(path, ["a.png"], png)
    cut(path, 30)


def bzip2(path: Path, png: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.png", png)


ZIPS: dict[str, tuple[Callable[[Path, bytes], Any], str]] = {
    "a folder up": (lambda path, png: zip_of(path, ["b/../../a.png"], png), "a name that leads out"),
    "an absolute name": (lambda path, png: zip_of(path, ["/a.png"], png), "a name that leads out"),
    "a drive": (lambda path, png: zip_of(path, ["C:\\a.png"], png), "a name that leads out"),
    "a link": (lambda path, png: zip_of(path, ["a.png"], b"/etc/passwd", as_link), r"a\.png is a link"),
    "encrypted": (encrypted, r"a\.png is encrypted"),
    "too large": (huge, r"a\.png would unpack to 2,147,483,649 bytes"),
    "cut off": (cut_zip, r"x\.zip cannot be read as a zip file \(.*\); it may be cut off"),
    "not a zip file": (lambda path, _: path.write_bytes(b"nothing"), r"x\.zip cannot be read as a zip file"),
    "of another method": (bzip2, r"a\.png is packed by method 12; write it anew, deflated"),
    "no images": (lambda path, _: zip_of(path, ["a.txt", "__MACOSX/a.png"], b""), r"no image in .*x\.zip"),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_zip_files_that_are_refused(kind: str, tmp_path: Path, png: bytes) -> None:
    make, message = ZIPS[kind]
    make(tmp_path / "x.zip", png)
    with pytest.raises(ValueError, match=message):
        open_source(f"zip://{tmp_path / 'x.zip'}")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_twice_in_a_zip_file_are_refused(tmp_path: Path, png: bytes) -> None:
    zip_of(tmp_path / "x.zip", ["a.png", "a.png"], png)
    with pytest.raises(ValueError, match=r"has a\.png twice"):
        open_source(f"zip://{tmp_path / 'x.zip'}")


def test_members_that_are_larger_than_they_say_are_not_unpacked(tmp_path: Path) -> None:
    """A bomb: 50 million zeros that say to be 1,000 bytes."""
    path = tmp_path / "x.zip"
    zip_of(path, ["a.png"], bytes(50_000_000))
    with_bytes(path, (50_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    with pytest.raises(UnreadableImage, match="damaged in the zip file: expected 1000 bytes, got more"):
        open_source(f"zip://{path}").open(0).decode(3)


def test_a_folder_in_a_zip_file(folder: Path, tmp_path: Path) -> None:
    address = write_zip(folder, tmp_path / "x.zip")
    source = open_source(f"{address}#a")
    assert [source.name(index) for index in range(len(source))] == [f"{number}.png" for number in range(4)]
    with pytest.raises(ValueError, match=r"no image in the folder c/ of"):
        open_source(f"{address}#c")


# --- lists ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file lists no images"),
        ("# a\n", "the file lists no images"),
        ("a/0.png\n./a/0.png\n", "lists a/0.png more than once"),
        (
            "a/0.png\na/nowhere.png\n",
            r"1 of 2 files looked for does not exist, such as a/nowhere\.png; paths",
        ),
        ("a/0.png\n\x00\x01", r"line 2 holds .*expected a text file"),
        ("nowhere://host/a.png\n", "fsspec has no file system for nowhere://"),
    ],
)
def test_lists_that_are_refused(folder: Path, text: str, message: str) -> None:
    path = folder / "list.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        open_source(f"list://{path}")
    path.unlink()


def test_lists_keep_their_order(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(f"\ufeff{folder}/b/0.png\r\n\r\n{folder}/a/0.png\r\n".encode())
    source = open_source(f"list://{path}")
    assert [source.name(index) for index in range(2)] == [f"{folder}/b/0.png", f"{folder}/a/0.png"]


# --- servers --------------------------------------------------------------------------------------------------------


def test_images_of_a_server(folder: Path, tmp_path: Path, cache: Path) -> None:
    root = shutil.copytree(folder, tmp_path / "images")
    write_tars(folder, root, 2)
    write_zip(folder, root / "x.zip")
    with serving(root) as (url, handler):
        names = [f"a/{n}.png" for n in range(4)] + [f"b/{n}.png" for n in range(2)]
        (root / "list.txt").write_text("".join(f"{url}/{name}\n" for name in names))
        (root / "relative.txt").write_text("\n".join(names))
        addresses = [f"{kind}://{url}/{rest}" for kind, rest in (("zip", "x.zip"), ("list", "relative.txt"))]
        addresses += [f"wds://{url}/shards-{{0000..0001}}.tar", f"list://{root}/list.txt", url, f"{url}/"]
        plain = open_source(folder)
        for address in addresses:
            source = open_source(address)
            assert [source.name(index).removeprefix(f"{url}/") for index in range(len(source))] == names
            source.prefetch([0, 3, 4])
            for index in range(len(source)):
                assert source.open(index).decode(3).equal(plain.open(index).decode(3))
        handler.requests.clear()
        for address in addresses[:3]:  # all of them are kept
            source = open_source(address)
            asked = len(handler.requests)
            source.prefetch(range(len(source)))
            for index in range(len(source)):
                source.open(index).decode(3)
            assert len(handler.requests) == asked


def test_requests_are_tried_again_and_then_counted_as_broken(folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(folder, tmp_path / "images")
    with serving(root) as (url, handler):
        source = open_source(url)
        handler.failures["/a/0.png"] = 2
        source.open(0).decode(3)
        assert handler.requests.count("/a/0.png") == 3
        handler.failures["/a/1.png"] = 3
        with pytest.raises(UnreadableImage, match=r"a/1\.png failed 3 times \(.*503"):
            source.open(1).decode(3)
        for code in (404, 403):
            handler.refused["/a/2.png"] = code
            with pytest.raises(UnreadableImage, match=r"does not exist|may not be read"):
                source.open(2).decode(3)
        assert handler.requests.count("/a/2.png") == 2
        handler.failures["/a/3.png"] = 3
        source.prefetch([3])
        with pytest.raises(UnreadableImage, match=r"a/3\.png failed 3 times"):
            source.open(3).decode(3)


@pytest.mark.parametrize("kind", ["wds", "zip", "parquet", "list"])
@pytest.mark.parametrize(
    ("code", "message"), [(404, "does not exist|missing|there is no file"), (403, "may not be read .*403")]
)
def test_answers_of_a_server_are_said(kind: str, code: int, message: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (url, handler):
        handler.refused["/x"] = code
        with pytest.raises(ValueError, match=message):
            open_source(f"{kind}://{url}/x")
    with pytest.raises(ValueError, match=r"cannot be read \(.*Cannot connect"):
        open_source(f"{kind}://{url}/x")


def test_servers_without_ranges_are_not_misread(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tars(folder, tmp_path, 1)
    with serving(tmp_path) as (url, handler):
        source = open_source(f"wds://{url}/shards-0000.tar")
        monkeypatch.setattr(handler, "ranges", False)
        with pytest.raises(UnreadableImage, match=r"expected .* bytes, got .*; its server does not answer"):
            source.open(0).decode(3)


@pytest.mark.parametrize(("address", "wanted"), [("x.tar", "wds"), ("x.zip", "zip"), ("x.parquet", "parquet")])
def test_files_of_a_server_are_named_by_what_they_are(address: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"write {wanted}://https://host/{address}"):
        open_source(f"https://host/{address}")


def test_files_in_place_of_folders_are_named_by_what_they_are(tmp_path: Path, png: bytes) -> None:
    tar = write_members(tmp_path / "x.tar", {"a.png": png})
    with pytest.raises(ValueError, match=rf"x\.tar is a file; --data takes the folder, or wds://{tmp_path}/x\.tar"):
        open_source(tar)
    assert len(open_source(f"wds://{tar}")) == 1


def test_a_batch_of_a_slow_server_is_fetched_together(folder: Path, tmp_path: Path) -> None:
    from sparkmim.data.config import DataConfig
    from sparkmim.data.views import training_view

    config = DataConfig(image_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    together, most = threading.Semaphore(0), [0, 0]
    lock = threading.Lock()
    with serving(shutil.copytree(folder, tmp_path / "images")) as (url, handler):
        source = open_source(url)
        answer = handler.do_GET

        def slowly(self: Any) -> None:
            with lock:
                most[0] += 1
                most[1] = max(most)
            together.acquire(timeout=0.2)
            answer(self)
            with lock:
                most[0] -= 1

        handler.do_GET = slowly  # type: ignore[method-assign]
        views = MaskedViews(source, training_view(config), 3, (2, 2), 0.5, 0)
        batch = views.__getitems__([(0, index) for index in range(6)])
    assert not any(view.broken for view in batch)
    assert most[1] >= 4


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"hf:// needs the package datasets: pip install 'sparkmim\[scale\]'"):
        open_source("hf://owner/name")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"s3:// needs s3fs: pip install 'sparkmim\[scale\]'"):
        open_source("s3://bucket/images")
    found = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"Parquet files need pyarrow: pip install 'sparkmim\[scale\]'"):
        open_source("parquet://x")


# --- the cache ------------------------------------------------------------------------------------------------------


def used(root: Path) -> int:
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file() and file.name != COUNTER)


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    cache = Cache(tmp_path, PARTS * 1000)
    for number in range(400):
        cache.put(str(number), os.urandom(number * 13 % 700))
        if number % 50 == 0:
            assert used(tmp_path) <= PARTS * 1000
    assert PARTS * 500 < used(tmp_path) <= PARTS * 1000
    assert sum(cache.get(str(number)) is not None for number in range(380, 400)) > 15
    cache.put("large", bytes(1000))
    assert cache.get("large") is None


def test_damaged_files_of_the_cache_are_not_taken(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10**6)
    cache.put("a", b"content")
    (file,) = (file for file in tmp_path.rglob("*") if file.is_file() and file.name != COUNTER)
    assert cache.get("a") == b"content"
    for spoilt in (b"", b"abc", file.read_bytes()[:-1], file.read_bytes()[:-1] + b"x"):
        file.write_bytes(spoilt)
        assert cache.get("a") is None


def test_the_size_of_the_cache_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARKMIM_CACHE_GB", "much")
    with pytest.raises(ValueError, match="SPARKMIM_CACHE_GB is 'much', not a number of gigabytes"):
        reading.kept("memory://x", 0, 1, "")
    limit_cache(0)
    assert reading.kept("memory://x", 0, 1, "") is None
    limit_cache(None)
    assert os.environ["SPARKMIM_CACHE_GB"] == "0.0"


def test_lists_are_those_of_the_folder(folder: Path, tmp_path: Path) -> None:
    assert len(open_source(write_list(folder, tmp_path / "list.txt"))) == 6
