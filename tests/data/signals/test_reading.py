"""Signals of every format are read alike, and what is wrong with a file is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from signal_files import RATE, WRITERS, waves, write_table, write_wav
from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.signals.reading import Recording, channels_first, open_recording
from sparkmim.data.signals.source import examine


def opened(path: Path, channels: int | None = None, time_column: str | None = None) -> Recording:
    return open_recording(path, channels, "auto", time_column)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("channels", [2, None])
def test_every_format_gives_the_same_signal(kind: str, channels: int | None, tmp_path: Path) -> None:
    name, write, rate = WRITERS[kind]
    write(tmp_path / name, waves())
    recording = opened(tmp_path / name, channels)
    assert recording[:3] == (2, 600, rate)
    np.testing.assert_allclose(recording.read(0, 600), waves(), atol=1e-6)
    part = recording.read(17, 40)
    assert part.dtype == np.float32
    np.testing.assert_array_equal(part, recording.read(0, 600)[:, 17:40])


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float16", ">f4", "int64"])
def test_numbers_of_all_types(dtype: str, tmp_path: Path) -> None:
    values = (100 + 50 * waves()).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.testing.assert_array_equal(opened(tmp_path / "a.npy").read(0, 600), values.astype(np.float32))


def test_tables_as_programs_write_them(tmp_path: Path) -> None:
    values = waves()
    pandas = ["", *(f"{number},{row[0]:.6f},{row[1]:.6f}" for number, row in enumerate(values.T))]
    (tmp_path / "pandas.csv").write_text("\n".join([",I,II", *pandas[1:]]))
    comma = "\n".join(f"{row[0]:.6f};{row[1]:.6f}".replace(".", ",") for row in values.T)
    (tmp_path / "comma.csv").write_text("\ufeff# of a device\nI;II\n" + comma)
    epoch = "\n".join(f"{1_700_000_000_000 + 5 * number},{a},{b}" for number, (a, b) in enumerate(values.T))
    (tmp_path / "epoch.csv").write_text('"timestamp","I","II"\n' + epoch)
    for name, rate in (("pandas", None), ("comma", None), ("epoch", 200.0)):
        recording = opened(tmp_path / f"{name}.csv")
        assert recording[:3] == (2, 600, rate)
        np.testing.assert_allclose(recording.read(0, 600), values, atol=1e-6)
    assert opened(tmp_path / "epoch.csv", time_column="timestamp").rate == 200.0


@pytest.mark.parametrize(
    ("heading", "unit"),
    [
        *((name, 1.0) for name in ("time", "t", "Time", "TIMESTAMP", "time stamp", "elapsed time", "Elapsed_Time")),
        *((name, 1.0) for name in ("seconds", "sec", "time [s]", "time(s)", "t_s", "time_sec", "Time (seconds)")),
        *((name, 1e-3) for name in ("ms", "t (ms)", "time_ms", "milliseconds", "time [msec]")),
        *((name, 1e-6) for name in ("time_us", "time [µs]", "microseconds")),
        *((name, 60.0) for name in ("time_min", "t [minutes]")),
        *((name, None) for name in ("s", "h", "I", "V5", "timer", "temp", "x", "lead t1", "times", "n", "min")),
    ],
)
def test_headings_of_the_time(heading: str, unit: float | None, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{heading},y\n" + "\n".join(f"{2 * n},{n * n}" for n in range(30)))
    recording = opened(tmp_path / "a.csv")
    assert recording.channels == (2 if unit is None else 1)
    assert recording.rate == (None if unit is None else pytest.approx(0.5 / unit, rel=1e-3))


def of_text(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "a.csv").write_text(text)


def of_array(array: np.ndarray, name: str = "a.npy") -> Callable[[Path], object]:
    return lambda folder: np.save(folder / name, array)


def truncated(folder: Path) -> None:
    np.save(folder / "a.npy", waves())
    whole = (folder / "a.npy").read_bytes()
    (folder / "a.npy").write_bytes(whole[: len(whole) // 2])


def damaged(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(b"RIFF what is this")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncated, "the file is truncated"),
    "no array": (damaged("a.npy"), "Error"),
    "no archive": (damaged("a.npz"), "Error|damaged"),
    "no sound": (damaged("a.wav"), "Error"),
    "text": (of_array(np.array(["a", "b"])), "expected real numbers, got values of type <U1"),
    "complex": (of_array(waves().astype(complex)), "expected real numbers, got values of type complex128"),
    "objects": (of_array(np.array([{}, []], dtype=object)), "Python objects"),
    "many signals": (of_array(np.zeros((5, 2, 100))), "5 x 2 x 100; save each signal as a file of its own"),
    "a number": (of_array(np.array(3.0)), "got a number"),
    "one sample": (of_array(np.zeros(1)), "it has 1 channels of 1 samples"),
    "no samples": (of_array(np.zeros((2, 0))), "it has 0 channels of 2 samples"),
    "square": (of_array(np.zeros((100, 120))), "100 x 120 values may be channels by samples .*--in-chans.*--layout"),
    "an empty table": (of_text("\n\n"), "the file is empty"),
    "a word": (of_text("I,II\n1,2\n3,high\n"), "line 3: expected a number, got 'high'"),
    "a gap": (of_text("I,II\n1,2\n3,\n"), "line 3: expected a number, got nothing; fill"),
    "ragged": (of_text("1,2\n3\n"), "line 2: expected 2 columns, got 1"),
    "other headings": (of_text("I,II,III\n1,2\n3,4\n"), "its first row names 3 columns, and it has 2"),
    "two times": (of_text("time,time_ms,x\n0,0,1\n1,1000,2\n"), "time, time_ms; name one by --time-column"),
    "time alone": (of_text("time\n0\n1\n"), "no column is left for a channel beside time"),
    "back in time": (of_text("time,x\n2,1\n1,1\n0,2"), "the times of its column 'time' do not increase"),
    "a pause": (
        of_text("time,x\n" + "\n".join(f"{n + 5 * (n > 20)},{n}" for n in range(40))),
        r"not equally far apart: the time of sample \d+ of column 'time' is 2\.\d+ samples from its place",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_file_is_said(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    if case == "no sound":
        pytest.importorskip("soundfile")
    make(tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(UnreadableImage, match=message):
        opened(path)


def test_a_time_column_that_is_not_there(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", waves(), header="I,II")
    with pytest.raises(UnreadableImage, match=r"no column 'Zeit' \(--time-column\): its columns are I, II"):
        opened(tmp_path / "a.csv", time_column="Zeit")


@pytest.mark.parametrize(
    ("shape", "channels", "layout", "expected"),
    [
        ((600,), None, "auto", (1, 600)),
        ((600,), 2, "auto", (1, 600)),  # refused where two are needed, by the crop
        ((12, 13), 12, "auto", (12, 13)),
        ((13, 12), 12, "auto", (12, 13)),
        ((600, 2), 2, "auto", (2, 600)),
        ((64, 256), None, "auto", (64, 256)),
        ((256, 64), None, "auto", (64, 256)),
        ((12, 12), None, "channels-last", (12, 12)),
        ((600, 2), 2, "channels-first", (600, 2)),
        ((12, 12), 12, "auto", "--layout channels-first or channels-last"),
        ((64, 255), None, "auto", "--in-chans"),
    ],
)
def test_axes(shape: tuple[int, ...], channels: int | None, layout: str, expected: tuple[int, ...] | str) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    if isinstance(expected, str):
        with pytest.raises(UnreadableImage, match=expected):
            channels_first(array, channels, layout)  # type: ignore[arg-type]
        return
    found = channels_first(array, channels, layout)  # type: ignore[arg-type]
    assert found.shape == expected
    if layout == "channels-last":
        np.testing.assert_array_equal(found, array.T)


def test_truncated_sound(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", waves(samples=4000))
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[: len(whole) // 2])
    recording = opened(tmp_path / "a.wav")
    assert recording.samples < 4000  # libsndfile counts what is there
    assert recording.read(0, recording.samples).shape == (2, recording.samples)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda values: values.__setitem__((1, 77), np.nan), "channel 1 is nan at sample 77; fill"),
        (lambda values: values.__setitem__((0, 5), -np.inf), "channel 0 is -inf at sample 5; fill"),
        (
            lambda values: values.__setitem__((slice(None), slice(None)), 3.0),
            "it is constant: all of its samples are 3",
        ),
    ],
)
def test_values_of_no_use(change: Callable[[np.ndarray], None], reason: str, tmp_path: Path) -> None:
    values = waves()
    change(values)
    np.save(tmp_path / "a.npy", values)
    said = examine(opened(tmp_path / "a.npy")).reason
    assert said is not None
    assert said.startswith(reason)


def test_mean_and_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkmim.data.signals.source.PIECE", 64)
    values = 1000 + waves()
    values[1] = 7.0  # a lead that is not connected
    np.save(tmp_path / "a.npy", values)
    facts = examine(opened(tmp_path / "a.npy"))
    np.testing.assert_allclose(facts.mean[:, 0], values.mean(1), rtol=1e-6)
    np.testing.assert_allclose(facts.std[:, 0], [values[0].std(), 1.0], rtol=1e-4)
    assert RATE == 200
