"""Sets of signals: one rate, crops of resampled signals, and what is refused before a run."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from signal_files import waves, write_table, write_wav
from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.signals.opening import open_signals
from sparkmim.data.signals.reading import open_recording
from sparkmim.data.signals.resampling import length_at, ratio_of, read_at
from sparkmim.data.signals.settings import SignalSettings
from sparkmim.data.signals.source import SignalPreparation, Signals


def save(folder: Path, rates: dict[str, float | None], channels: int = 2, samples: int = 600) -> Path:
    folder.mkdir(exist_ok=True)
    for number, (name, rate) in enumerate(rates.items()):
        values = waves(channels, samples, number)
        if rate is None:
            np.save(folder / f"{name}.npy", values)
        else:
            np.savez(folder / f"{name}.npz", signal=values, rate=rate)
    return folder


RATIOS = [Fraction(1, 2), Fraction(2, 1), Fraction(16, 25), Fraction(36, 25), Fraction(160, 441)]


@pytest.mark.parametrize("ratio", RATIOS)
def test_crops_of_resampled_signals_are_those_of_the_whole(ratio: Fraction, tmp_path: Path) -> None:
    signal = pytest.importorskip("scipy.signal")
    values = waves(samples=700).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    recording = open_recording(tmp_path / "a.npy", 2, "auto", None)
    length = length_at(700, ratio)
    whole = read_at(recording, ratio, 0, length)
    reference = signal.resample_poly(values, ratio.numerator, ratio.denominator, axis=1, padtype="edge")
    np.testing.assert_allclose(whole, reference[:, :length], atol=1e-5)
    for start, stop in ((0, 1), (1, 50), (37, 200), (length - 60, length)):
        np.testing.assert_array_equal(read_at(recording, ratio, start, stop), whole[:, start:stop])


def test_ratios_of_rates() -> None:
    assert ratio_of(500, 250) == Fraction(1, 2)
    assert ratio_of(44_100, 16_000) == Fraction(160, 441)
    assert ratio_of(360, 500) == Fraction(25, 18)
    assert ratio_of(359.9, 360) == 1  # as rounded times give it
    assert abs(float(ratio_of(333.3, 250)) * 333.3 - 250) < 0.1
    assert abs(float(ratio_of(8000, 1.5)) * 8000 - 1.5) < 1e-9


def test_one_rate_is_recorded_and_mixed_ones_are_refused_by_name(tmp_path: Path) -> None:
    folder = save(tmp_path / "one", {"a": 200.0, "b": 200.0})
    assert open_signals(folder, SignalSettings()).preparation.rate == 200
    np.savez(folder / "c.npz", signal=waves(), rate=500)
    with pytest.raises(ValueError, match=r"a\.npz at 200 Hz, c\.npz at 500 Hz\. Resample them by --rate 200"):
        open_signals(folder, SignalSettings())
    np.save(folder / "d.npy", waves())
    with pytest.raises(ValueError, match=r"--rate 200: d\.npy does not give the rate it is sampled at; save it"):
        open_signals(folder, SignalSettings(rate=200))
    (folder / "c.npz").unlink()
    with pytest.raises(ValueError, match=r"a\.npz is sampled at 200 Hz, and d\.npy does not give its rate"):
        open_signals(folder, SignalSettings())
    (folder / "d.npy").unlink()
    assert open_signals(folder, SignalSettings(rate=100)).lengths.tolist() == [[300], [300]]


def test_rates_that_differ_by_rounding_are_one(tmp_path: Path) -> None:
    for name, digits in (("a", 3), ("b", 4)):
        rows = "\n".join(f"{number / 360:.{digits}f},{np.sin(number)}" for number in range(700))
        (tmp_path / f"{name}.csv").write_text(f"time,I\n{rows}\n")
    assert open_signals(tmp_path, SignalSettings()).preparation.rate == 360


def test_a_later_signal_of_another_rate_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkmim.data.signals.source.SURVEYED", 1)
    folder = save(tmp_path / "some", {"a": 200.0, "b": 500.0})
    signals = open_signals(folder, SignalSettings())
    with pytest.raises(UnreadableImage, match="sampled at 500 Hz, others at 200 Hz; resample them by --rate"):
        signals.open(1).decode(2)
    np.save(folder / "b.npy", waves())
    with pytest.raises(UnreadableImage, match=r"does not give its sampling rate, and signals of 200 Hz are wanted"):
        open_signals(folder, SignalSettings()).open(1).decode(2)


@pytest.mark.parametrize("amplitude", ["signal", "set"])
def test_normalization(amplitude: str, tmp_path: Path) -> None:
    values = 5 + 3 * waves()
    np.save(tmp_path / "a.npy", values)
    signals = open_signals(tmp_path, SignalSettings(amplitude=amplitude))  # type: ignore[arg-type]
    read = signals.open(0).decode(2).numpy()
    expected = values
    if amplitude == "signal":
        expected = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    np.testing.assert_allclose(read, expected, atol=1e-5)
    np.testing.assert_array_equal(signals.open(0).crop([100], [120]).numpy(), read[:, 100:120])


def test_long_signals_are_examined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkmim.data.signals.source.REMEMBERED", 1000)
    np.save(tmp_path / "a.npy", waves())
    np.save(tmp_path / "b.npy", np.full((2, 600), np.nan))
    signals = open_signals(tmp_path, SignalSettings())
    first = signals.open(0).decode(2)
    with pytest.raises(UnreadableImage, match="nan at sample 0"):
        signals.open(1).decode(2)
    monkeypatch.setattr("sparkmim.data.signals.source.examine", lambda recording: pytest.fail("it was examined before"))
    assert torch.equal(signals.open(0).decode(2), first)
    with pytest.raises(UnreadableImage, match="nan at sample 0"):
        signals.open(1).decode(2)


def test_which_files_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(tmp_path / "some", {"b": None, "a": None})
    (folder / "deep").mkdir()
    np.save(folder / "deep" / "c.npy", waves())
    (folder / "deep" / "c.npy").rename(folder / "deep" / "c.NPY")
    (folder / "labels.csv").write_text("a.npy,1\n")
    (folder / ".hidden.npy").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    signals = open_signals(folder, SignalSettings())
    assert [signals.name(index) for index in range(len(signals))] == ["a.npy", "b.npy", "deep/c.NPY"]
    assert "passed over 1 tables" in caplog.text
    one = open_signals(folder / "a.npy", SignalSettings())
    assert (len(one), one.name(0)) == (1, "a.npy")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, r"no signal in .*: it holds no file; expected .*\.npy"),
        (lambda folder: (folder / "a.dat").write_bytes(b""), r"it holds 1 \.dat; expected"),
        (lambda folder: (folder / "a.npy").write_bytes(b"x"), r"none of 1 signals tried can be read; a\.npy: "),
    ],
)
def test_folders_of_no_use(make: object, message: str, tmp_path: Path) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        open_signals(tmp_path, SignalSettings())


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file or folder .*; see --val-data"):
        open_signals(tmp_path / "none", SignalSettings(), option="--val-data")
    (tmp_path / "a.txt").write_text("1")
    with pytest.raises(ValueError, match="is not a file of a signal"):
        open_signals(tmp_path / "a.txt", SignalSettings())


def test_sources_are_pickled_for_other_processes(tmp_path: Path) -> None:
    folder = save(tmp_path / "some", {"a": 200.0})
    signals = open_signals(folder, SignalSettings(rate=100))
    again = pickle.loads(pickle.dumps(signals))
    assert isinstance(again, Signals)
    assert torch.equal(again.open(0).decode(2), signals.open(0).decode(2))


def test_other_signals_are_brought_to_the_rate_that_was_learned(tmp_path: Path) -> None:
    learned = open_signals(save(tmp_path / "one", {"a": 200.0}), SignalSettings()).preparation
    other = open_signals(save(tmp_path / "other", {"a": 400.0}), SignalPreparation.from_json(learned.as_json()))
    assert other.open(0).shape == (2, 300)


@pytest.mark.parametrize(
    "change",
    [{"rate": 0}, {"rate": "x"}, {"rate": float("nan")}, {"amplitude": "loud"}, {"layout": 3}, {"time_column": 3}],
)
def test_recorded_preparations_are_validated(change: dict[str, object]) -> None:
    sound = SignalPreparation(200.0, False, "signal", "auto", None).as_json()
    assert SignalPreparation.from_json(sound).as_json() == sound
    with pytest.raises(ValueError):
        SignalPreparation.from_json({**sound, **change})
    with pytest.raises(ValueError, match="lacks"):
        SignalPreparation.from_json({name: sound[name] for name in ("rate", "resample")})


def test_sound_and_tables(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.flac", waves())
    assert open_signals(tmp_path, SignalSettings()).preparation.rate == 200
    write_table(tmp_path / "b.csv", waves(), header="time,I,II", time=1)
    assert len(open_signals(tmp_path, SignalSettings())) == 1
