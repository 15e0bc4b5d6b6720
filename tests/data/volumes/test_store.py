"""The store of prepared volumes: its content, its crops, and what is left of it after a crash."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.sources.base import Subset, fingerprint
from sparkmim.data.volumes import preparing
from sparkmim.data.volumes.cases import Case, find_cases
from sparkmim.data.volumes.fingerprint import measure
from sparkmim.data.volumes.preparing import Preparation, Prepared, PrepareSettings, prepare, prepare_case
from sparkmim.data.volumes.reading import read_volume
from sparkmim.data.volumes.store import PreparedVolumes, StoredVolume, compress, is_store, open_array, partition
from sparkmim.data.volumes.unprepared import UnpreparedVolumes
from volume_files import phantom, write_nifti

SETTINGS = PrepareSettings(spacing=(1.5, 1.0, 1.0))


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(5):
        write_nifti(folder / f"{index}.nii.gz", phantom(index))
    return find_cases(folder)


def content(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def test_store_holds_what_is_prepared(cases: list[Case], tmp_path: Path) -> None:
    store = prepare(cases, SETTINGS, tmp_path / "store", workers=0)
    assert is_store(tmp_path / "store")
    assert not is_store(tmp_path)
    assert [store.name(index) for index in range(len(store))] == [case.name for case in cases]
    assert store.settings == SETTINGS
    preparation = Preparation.of(SETTINGS, measure(cases))
    direct = UnpreparedVolumes(cases, SETTINGS)
    for index, case in enumerate(cases):
        expected = prepare_case(case, preparation)
        for source in (store, direct):
            volume = source.open(index)
            assert volume.shape == expected.values.shape
            np.testing.assert_array_equal(volume.affine, expected.affine)
            np.testing.assert_array_equal(volume.decode(1), expected.values)
    assert fingerprint(store) == fingerprint(direct)
    np.testing.assert_array_equal(store.shapes, direct.shapes)
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again.open(1).decode(1), store.open(1).decode(1))
    assert torch.equal(Subset(store, [3]).open(0).decode(1), store.open(3).decode(1))


@pytest.mark.parametrize("shape", [(1, 70, 33, 40), (2, 5, 6, 7), (3, 40, 40, 3)])
def test_crops_are_parts_of_the_whole(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (tmp_path / "a.b2nd").write_bytes(compress(values, np.eye(4)))
    volume = StoredVolume(tmp_path / "a.b2nd", shape, np.eye(4))
    random = np.random.default_rng(1)
    for _ in range(20):
        ends = np.sort([random.choice(n + 1, size=2, replace=False) for n in shape[1:]], axis=1)
        crop = volume.crop(ends[:, 0].tolist(), ends[:, 1].tolist())
        assert crop.dtype == torch.float32
        np.testing.assert_array_equal(crop, values[:, *(slice(a, b) for a, b in ends)])
    for start, stop in (((0, 0, 0), (0, 1, 1)), ((-1, 0, 0), (1, 1, 1)), ((0, 0, 0), (1, 1, shape[3] + 1))):
        with pytest.raises(ValueError, match="expected a crop within"):
            volume.crop(start, stop)
    with pytest.raises(UnreadableImage, match="expected 9 channels"):
        volume.decode(9)


@pytest.mark.parametrize(
    "shape", [(1, 256, 256, 256), (2, 512, 512, 40), (1, 3, 400, 400), (4, 10, 9, 8), (1, 1, 1, 1)]
)
def test_blocks_fit_the_caches(shape: tuple[int, ...]) -> None:
    block, chunk = partition(shape)
    assert block[0] == chunk[0] == 1
    assert 4 * np.prod(block) <= 128 * 1024
    assert 4 * np.prod(chunk) <= 6 * 1024**2
    assert all(b <= c <= n for b, c, n in zip(block, chunk, shape, strict=True))
    if min(shape[1:]) >= 32:
        assert block == (1, 32, 32, 32)


def test_crop_reads_the_blocks_that_it_needs(tmp_path: Path) -> None:
    """Bytes of all other blocks may be damaged."""
    values = np.random.default_rng(0).normal(size=(1, 64, 64, 64)).astype(np.float32)
    data = bytearray(compress(values, np.eye(4)))
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    (tmp_path / "a.b2nd").write_bytes(bytes(data))
    array = open_array(tmp_path / "a.b2nd")
    np.testing.assert_array_equal(array[0:1, :32, :32, :32], values[:, :32, :32, :32])
    with pytest.raises(RuntimeError):
        array[...]


def test_number_of_workers_does_not_matter(cases: list[Case], tmp_path: Path) -> None:
    stores = [tmp_path / f"store{workers}" for workers in (0, 1, 2)]
    for workers, store in enumerate(stores):
        prepare(cases, PrepareSettings(), store, workers=workers)
    assert content(stores[0]) == content(stores[1]) == content(stores[2])


def prepare_slowly(cases: list[Case], store: Path, workers: int) -> None:
    def slow(case: Case, preparation: Preparation) -> Prepared:
        time.sleep(0.15)
        return prepare_case(case, preparation)

    preparing.prepare_case = slow  # type: ignore[assignment] # in a process of its own
    prepare(cases, SETTINGS, store, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_preparation_continues(workers: int, cases: list[Case], tmp_path: Path) -> None:
    whole = prepare(cases, SETTINGS, tmp_path / "whole", workers=0)
    store = tmp_path / "killed"
    killed = multiprocessing.get_context("fork").Process(target=prepare_slowly, args=(cases, store, workers))
    killed.start()
    end = time.monotonic() + 60
    while not list(store.glob("volumes/*.b2nd")) and time.monotonic() < end:
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert not is_store(store)
    done = {path: path.stat().st_mtime_ns for path in store.glob("volumes/*.b2nd")}
    assert 0 < len(done) < len(cases)
    resumed = prepare(cases, SETTINGS, store, workers=0)
    assert all(path.stat().st_mtime_ns == made for path, made in done.items())
    ours = {name: data for name, data in content(store).items() if not name.endswith(".partial")}
    assert ours == content(whole.root)
    assert len(resumed) == 5


def test_what_is_done_is_kept_until_settings_or_files_change(cases: list[Case], tmp_path: Path) -> None:
    store = tmp_path / "store"

    def made() -> set[str]:
        prepare(cases, SETTINGS, store, workers=0)
        return {path.name for path in store.glob("volumes/*")}

    first = made()
    assert made() == first
    write_nifti(cases[2].files[0], phantom(9))
    assert len(made() - first) == 1
    before = {path.name for path in store.glob("volumes/*")}
    prepare(cases, PrepareSettings(spacing="none"), store, workers=0)
    assert len({path.name for path in store.glob("volumes/*")} - before) == 5
    next(store.glob("volumes/*")).write_bytes(b"damaged")
    prepare(cases, PrepareSettings(spacing="none"), store, workers=0)
    for source in (prepare(cases, SETTINGS, store, workers=0), PreparedVolumes.open_store(store)):
        assert all(source.open(index).decode(1).shape[0] == 1 for index in range(5))


def test_files_left_by_a_crash_are_removed(cases: list[Case], tmp_path: Path) -> None:
    folder = tmp_path / "store" / "volumes"
    folder.mkdir(parents=True)
    old, new = folder / "a.b2nd.12.partial", folder / "b.b2nd.12.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 10_000,) * 2)
    prepare(cases, SETTINGS, tmp_path / "store", workers=0)
    assert not old.exists()
    assert new.exists()  # another process may be at it


def test_unreadable_volumes_are_listed(cases: list[Case], tmp_path: Path) -> None:
    cases[1].files[0].write_bytes(cases[1].files[0].read_bytes()[:300])
    store = prepare(cases, SETTINGS, tmp_path / "store", workers=0)
    assert len(store) == 4
    assert [name for name, _ in store.unreadable] == ["1.nii.gz"]
    assert PreparedVolumes.open_store(store.root).unreadable == store.unreadable
    for case in cases:
        case.files[0].write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 5 volumes"):
        prepare(cases, SETTINGS, tmp_path / "other", workers=0)


def test_size_is_announced_and_compared_with_the_disk(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sparkmim"):
        prepare(cases[:2], SETTINGS, tmp_path / "store", workers=0)
    assert "preparing 2 volumes into" in caplog.text
    assert "at most" in caplog.text
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 2**30 + 100))
    with pytest.raises(ValueError, match=r"3 prepared volumes take about .* kB .*--spacing X Y Z"):
        prepare(cases, SETTINGS, tmp_path / "store", workers=0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 2**30 + 20_000))
    prepare(cases, SETTINGS, tmp_path / "store", workers=0)  # it fits, compressed
    assert len(PreparedVolumes.open_store(tmp_path / "store")) == 5


def test_fingerprint_of_other_volumes_is_refused(cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without 2 of these"):
        prepare(cases, SETTINGS, tmp_path / "store", workers=0, fingerprint=measure(cases[:3]))


def test_crops_of_volumes_in_memory_are_copies(cases: list[Case]) -> None:
    volume = UnpreparedVolumes(cases, SETTINGS).open(0)
    volume.decode(1).zero_()
    assert volume.decode(1).any()


def test_killed_worker_is_told_of(cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(case: Case, preparation: Preparation) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(preparing, "prepare_case", die)
    with pytest.raises(ChildProcessError, match="fewer --workers"):
        prepare(cases, SETTINGS, tmp_path / "store", workers=1)


def test_errors_of_workers_are_told_as_they_are(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(case: Case, preparation: Preparation) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparing, "prepare_case", fail)
    for workers in (0, 1):
        with pytest.raises(OSError, match="No space left") as failed:
            prepare(cases, SETTINGS, tmp_path / "store", workers=workers)
        assert str(failed.value) == "[Errno 28] No space left on device"


@pytest.mark.parametrize("module", ["nibabel", "blosc2"])
def test_missing_library_is_named(
    module: str, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf'{module} .*pip install "sparkmim\[volumes\]"'):
        prepare(cases, SETTINGS, tmp_path / "store", workers=1)
    path = tmp_path / f"a.{'b2nd' if module == 'blosc2' else 'nii'}"
    path.write_bytes(b"content")
    with pytest.raises(ValueError, match="pip install"):
        read_volume(Case("a", (path,)))


@pytest.mark.parametrize("text", [None, "{", "{}", '{"version": 99}', '{"version": 1, "volumes": [{"name": 1}]}'])
def test_folders_that_are_no_store(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "store.json").write_text(text)
    with pytest.raises(ValueError, match="is not a store of prepared volumes"):
        PreparedVolumes.open_store(tmp_path)


def test_store_does_not_lead_out_of_its_folder(cases: list[Case], tmp_path: Path) -> None:
    store = prepare(cases, SETTINGS, tmp_path / "store", workers=0)
    path = store.root / "store.json"
    value = json.loads(path.read_text())
    value["volumes"][0]["key"] = "../../data/secret"
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match="letters and digits"):
        PreparedVolumes.open_store(store.root)


def test_missing_or_damaged_file_of_the_store(cases: list[Case], tmp_path: Path) -> None:
    store = prepare(cases, SETTINGS, tmp_path / "store", workers=0)
    paths = [store.root / "volumes" / f"{entry.key}.b2nd" for entry in store.entries]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    for index in (0, 1):
        with pytest.raises(UnreadableImage, match="missing or damaged"):
            store.open(index).decode(1)
