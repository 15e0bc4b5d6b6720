"""Small files of signals in every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

RATE = 200.0


def waves(channels: int = 2, samples: int = 600, seed: int = 0) -> np.ndarray:
    """Return sums of sines and noise, `(channels, samples)`."""
    generator = np.random.default_rng(seed)
    time = np.arange(samples) / RATE
    periods = generator.uniform(1, 8, (channels, 1))
    values: np.ndarray = np.sin(2 * np.pi * periods * time) + 0.1 * generator.normal(size=(channels, samples))
    return 0.3 * values


def write_wav(path: Path, values: np.ndarray, rate: float = RATE) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(path, values.T, int(rate), subtype="FLOAT" if path.suffix == ".wav" else None)


def write_table(
    path: Path, values: np.ndarray, *, header: str | None = None, separator: str = ",", time: float | None = None
) -> None:
    rows = [[f"{value:.6f}" for value in row] for row in values.T]
    if time is not None:
        rows = [[f"{number / RATE * time:.7g}", *row] for number, row in enumerate(rows)]
    lines = [] if header is None else [header]
    path.write_text("\n".join([*lines, *(separator.join(row) for row in rows)]) + "\n")


WRITERS: dict[str, tuple[str, Callable[[Path, np.ndarray], None], float | None]] = {
    "channels first": ("a.npy", lambda path, values: np.save(path, values), None),
    "channels last": ("a.npy", lambda path, values: np.save(path, values.T), None),
    "Fortran order": ("a.npy", lambda path, values: np.save(path, np.asfortranarray(values.astype(np.float32))), None),
    "archive": ("a.npz", lambda path, values: np.savez(path, values), None),
    "archive with a rate": ("a.npz", lambda path, values: np.savez_compressed(path, signal=values, fs=RATE), RATE),
    "archive of several": ("a.npz", lambda path, values: np.savez(path, x=values, sr=[RATE], age=40, y=[1, 0]), RATE),
    "table": ("a.csv", write_table, None),
    "table with headings": ("a.csv", lambda path, values: write_table(path, values, header="I,aVR"), None),
    "seconds": ("a.csv", lambda path, values: write_table(path, values, header="time,I,II", time=1), RATE),
    "milliseconds": ("a.csv", lambda path, values: write_table(path, values, header="t [ms],I,II", time=1e3), RATE),
    "microseconds": ("a.tsv", lambda p, v: write_table(p, v, header="time_us\tI\tII", separator="\t", time=1e6), RATE),
    "spaces": ("a.csv", lambda path, values: write_table(path, values, separator=" "), None),
    "sound": ("a.wav", write_wav, RATE),
}
"""Name, writer, and the rate that the file gives."""
