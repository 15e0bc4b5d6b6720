"""Class folders, tables of labels, shares and folds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparkmim.data.labels import (
    LabeledImages,
    fold,
    label_share,
    labeled_splits,
    read_labeled,
    read_matching,
    read_splits,
)
from sparkmim.data.sources.folder import Files


def make(root: Path, *names: str) -> Path:
    """Empty files: reading labels does not open images."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.touch()
    return root


def labeled(*counts: int) -> LabeledImages:
    labels = np.repeat(np.arange(len(counts)), counts)
    names = [f"{label}/{index}.png" for index, label in enumerate(labels)]
    return LabeledImages(Files(Path("nowhere"), names), labels, tuple(map(str, range(len(counts)))))


def test_class_folders(tmp_path: Path) -> None:
    found = read_labeled(make(tmp_path, "zebra/1.png", "ant/2.jpg", "ant/deep/3.png", ".hidden/4.png", "ant/note.txt"))
    assert found.classes == ("ant", "zebra")
    names = [found.source.name(index) for index in range(len(found))]
    assert dict(zip(names, found.labels.tolist(), strict=True)) == {
        "ant/2.jpg": 0,
        "ant/deep/3.png": 0,
        "zebra/1.png": 1,
    }
    assert found.counts() == [2, 1]


def test_splits(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/", "test/c/1.png")
    train, val = read_splits(tmp_path)
    assert val is not None
    assert (train.classes, val.classes, val.counts()) == (("a", "b"), ("a", "b"), [1, 0])
    train, val = read_splits(tmp_path / "train")
    assert (len(train), val) == (2, None)
    with pytest.raises(
        ValueError, match=r"expected .*test to have the classes of .*: c only in .*test; a, b missing there"
    ):
        read_splits(tmp_path / "train", tmp_path / "test")


def test_table(tmp_path: Path) -> None:
    make(tmp_path, "x/1.png", "x/2.png", "3.png")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nx/1.png,dog\n3.png,cat\n\nx/2.png, dog \n")
    found = read_labeled(table)
    assert (found.classes, found.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    assert [found.source.name(index) for index in range(3)] == ["x/1.png", "3.png", "x/2.png"]
    table.write_text("3.png,dog\n")
    one = read_matching(table, found.classes, "the training images")
    assert one.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3.png,cat\nx/9.png,dog\n", "1 of the 2 images of .* does not exist: x/9.png. Paths are relative to"),
        ("", "lists no images"),
        ("path,label\n", "lists no images"),
        ("3.png,cat,1\n", "line 1: expected `path,class`, got '3.png,cat,1'"),
        ("3.png,\n", "line 1: expected"),
        ("3.png,cat\n3.png,dog\n", "more than once: 3.png"),
        (
            "image,category\n3.png,cat\n",
            "does not exist: image.*; the first row is taken as a header if",
        ),
        ("3.png,\xe9l\xe9phant\n", "labels.csv cannot be read as a CSV file .*; save it as one, encoded in UTF-8"),
        (f"3.png,{'x' * 200_000}\n", "labels.csv cannot be read as a CSV file .field larger"),
    ],
)
def test_bad_tables(tmp_path: Path, content: str, message: str) -> None:
    make(tmp_path, "3.png")
    (tmp_path / "labels.csv").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        read_labeled(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("1.png", "2.png"), "no class folders: its 2 images lie in the folder itself"),
        (("a/1.png", "b/1.png", "3.png"), "1 image of .* lies outside its class folders: 3.png"),
        (("a/1.png", "b/"), "no image in the class folder b"),
        (("a/1.png",), "expected at least two classes in .*, got a alone"),
        (
            ("train/a/1.png", "train/b/1.png", "shoes/1.png"),
            "got also shoes; if all of these are classes, write --data",
        ),
    ],
)
def test_bad_folders(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_splits(make(tmp_path, *names))


@pytest.mark.parametrize("name", ["nowhere", "nowhere.csv", "note.txt"])
def test_what_is_not_there_is_told_of_its_own_flag(tmp_path: Path, name: str) -> None:
    root = make(tmp_path, "train/a/1.png", "train/b/1.png", "note.txt")
    wrong, right = root / name, root / "train"
    for option, read in (
        ("--data", lambda: labeled_splits(wrong, None, [])),
        ("--val-data", lambda: labeled_splits(right, wrong, [])),
        ("--test-data", lambda: labeled_splits(right, None, [right, wrong])),
        ("--monitor-data", lambda: read_splits(wrong, option="--monitor-data")),
    ):
        with pytest.raises(ValueError, match=rf"{name}; see {option}\b"):
            read()


def test_share_is_stratified() -> None:
    everything = labeled(100, 40, 9, 1)
    quarter, tenth = label_share(everything, 0.25, 0), label_share(everything, 0.1, 0)
    assert quarter.counts() == [25, 10, 2, 1]
    assert tenth.counts() == [10, 4, 1, 1]
    names = [{part.source.name(index) for index in range(len(part))} for part in (tenth, quarter)]
    assert names[0] < names[1]
    other = label_share(everything, 0.1, 1)
    assert names[0] != {other.source.name(index) for index in range(len(other))}
    assert label_share(everything, 1.0, 0).counts() == everything.counts()
    with pytest.raises(ValueError, match="--label-share 0 must be above 0"):
        label_share(everything, 0.0, 0)


def test_folds_part_the_images() -> None:
    everything = labeled(10, 7, 3, 1)
    held: list[str] = []
    sizes = []
    for index in range(5):
        train, out = fold(everything, 5, index, 0)
        names = [{part.source.name(i) for i in range(len(part))} for part in (train, out)]
        assert not names[0] & names[1]
        assert len(names[0] | names[1]) == 21
        assert out.counts()[0] == 2
        assert train.counts()[3] == 1
        held += names[1]
        sizes.append(len(out))
    assert sorted(held) == sorted(everything.source.name(i) for i in range(20))
    assert sizes == [4] * 5
    with pytest.raises(ValueError, match="--fold 5 must be 0 to 4"):
        fold(everything, 5, 5, 0)
    with pytest.raises(ValueError, match="2 images do not fill 3 folds; use fewer --folds"):
        fold(labeled(2), 3, 2, 0)
    with pytest.raises(ValueError, match=r"every class has a single image, so none .*; name others with --val-data"):
        fold(labeled(1, 1), 3, 0, 0)


@pytest.mark.parametrize("separator", [",", ";", "\t", ", "])
@pytest.mark.parametrize("label", ["label", "Class", "target"])
@pytest.mark.parametrize("path", ["image", "file", "Path", "filename"])
def test_usual_headings_and_separators(tmp_path: Path, separator: str, label: str, path: str) -> None:
    make(tmp_path, "a b.png", "c.png", "d.png")
    rows = [(path, "width", label), ("a b.png ", "4", "cat"), ("./c.png", "4", "dog"), ("x/../d.png", "4", "dog ")]
    for order in ((0, 2), (2, 0), (0, 1, 2), (2, 1, 0)):
        lines = [separator.join(row[place] for place in order) for row in rows]
        (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
        labeled = read_labeled(tmp_path / "labels.csv")
        assert [labeled.source.name(i) for i in range(3)] == ["a b.png", "c.png", "d.png"]
        assert labeled.classes == ("cat", "dog")
        assert labeled.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "names", ["a.png,cat\n./a.png,dog\n", "a.png,cat\na.png ,cat\n", "a.png;cat\n{root}/a.png;dog\n"]
)
def test_one_file_has_one_name(tmp_path: Path, names: str) -> None:
    make(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_text(names.format(root=tmp_path))
    with pytest.raises(ValueError, match=r"lists images more than once: a\.png"):
        read_labeled(tmp_path / "labels.csv")


def test_a_column_of_splits(tmp_path: Path) -> None:
    make(tmp_path, *(f"{i}.png" for i in range(8)))
    splits = ["train", "Training", "val", "valid", "test", "train", "train", "dev"]
    rows = [f"{i}.png;{'ab'[i % 2]};{split}" for i, split in enumerate(splits)]
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(["filename;class;split", *rows]))
    train, val, test = labeled_splits(file, None, [])
    assert val is not None
    found = [[part.source.name(i) for i in range(len(part))] for part in (train, val, *test)]
    assert found == [["0.png", "1.png", "5.png", "6.png"], ["2.png", "3.png", "7.png"], ["4.png"]]
    file.write_text("\n".join(["filename;class;fold", *(f"{i}.png;a;{i % 4}" for i in range(8))]))
    with pytest.raises(ValueError, match=r"line 2: expected a split \(train, val, test\), got '0'; name the column"):
        read_labeled(file)
