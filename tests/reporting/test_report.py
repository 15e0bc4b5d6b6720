"""The report: what it shows is what the run's files say, and it needs and betrays nothing else."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparkmim.reporting.reconstructions import save_png
from sparkmim.reporting.report.axes import Axis, axis
from sparkmim.reporting.report.curves import MOST_POINTS, curve, read_metrics, smooth, thin
from sparkmim.reporting.report.page import planned_steps, write_report
from sparkmim.reporting.report.tables import MOST_UNREADABLE
from sparkmim.reporting.report.text import name_as_html, number, without_folders
from sparkmim.utils.text import duration


class Page(HTMLParser):
    """A page's elements as (tag, attributes), and its texts as (tag, attributes, text) of what each stands in."""

    VOID = {"meta", "link", "img"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[str, dict[str, str], str]] = []
        self.open: list[tuple[str, dict[str, str]]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.append((*self.open[-1], data))

    def texts(self, tag: str) -> list[str]:
        return [text for inside, _, text in self.text if inside == tag]

    def with_class(self, tag: str, name: str) -> list[dict[str, str]]:
        return [
            attributes for t, attributes in self.elements if t == tag and name in attributes.get("class", "").split()
        ]


def training_line(step: int, loss: float) -> dict[str, float]:
    return {
        "step": step,
        "epoch": step / 48,
        "loss": loss,
        "lr": 1e-3 * step / 720,
        "weight_decay": 0.05,
        "grad_norm": 2.0,
        "images_per_second": 64.0,
        "peak_memory_bytes": 2**31,
    }


LINES: list[dict[str, float]] = [
    *(training_line(step, 0.5 + 1 / step) for step in range(2, 401, 2)),
    {"step": 48, "epoch": 1.0, "val_loss": 0.91},
    {"step": 400, "epoch": 8.33, "val_loss": 0.87},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with everything in it."""
    folder = tmp_path / "first try"
    folder.mkdir()

    def write(name: str, value: Mapping[str, object]) -> None:
        (folder / f"{name}.json").write_text(json.dumps(value))

    write(
        "config",
        {
            "recipe": "auto",
            "model": {"model": "resnet18", "densify_norm": None, "hierarchy": True},
            "data": {
                "data": "/home/someone/my <b>images",
                "crop_scale": [0.67, 1.0],
                "val_data": "C:\\Users\\me\\val",
            },
            "run": {"batch_size": 64},
        },
    )
    write("plan", {"images": "3,068", "epochs": "15 (720 steps)", "from": "weights in /home/someone/encoder.pt"})
    write("environment", {"torch": "2.15.0", "python": "/opt/someone/bin/python3"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    for i in range(1, 12):
        save_png(Image.new("RGB", (40, 30), (20 * i, 0, 0)), folder / "reconstructions" / f"step-{i * 36:09}.png")
    (folder / "broken_images.txt").write_text(
        "<script>alert(1)<script>.jpg\tcannot identify image file '/home/someone/my images/x.jpg'\n"
        + "".join(f"image{i:02}.jpg\tcut off\n" for i in range(29))
    )
    return folder


def shown(run: Path) -> Page:
    return Page(write_report(run))


def test_is_written_into_the_run_and_leaves_nothing_else(run: Path) -> None:
    before = set(run.iterdir())
    assert write_report(run) == run / "report.html"
    assert set(run.iterdir()) == before | {run / "report.html"}
    assert write_report(run) == run / "report.html"


def test_asks_for_nothing_from_elsewhere(run: Path) -> None:
    page = shown(run)
    assert "://" not in page.source
    assert "@import" not in page.source
    assert not re.search(r"url\(", page.source)
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not [tag for tag, _ in page.elements if tag in ("iframe", "object", "embed", "form", "base")]


def test_shows_no_absolute_paths(run: Path) -> None:
    page = shown(run)
    assert "someone" not in page.source
    assert "Users" not in page.source
    assert str(run.parent) not in page.source
    cells = page.texts("td")
    assert "my <b>images" in cells
    assert "val" in cells
    assert "weights in encoder.pt" in cells
    assert "python3" in cells
    assert "cannot identify image file 'x.jpg'" in cells


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/images", "images"),
        ("/data/My Photos/cats and dogs", "cats and dogs"),
        ("~/images", "images"),
        ("file:///data/images", "images"),
        ("C:\\Users\\me\\net.py:make", "net.py:make"),
        ("python /a/b.py --data /c/d --epochs 3", "python b.py --data d --epochs 3"),
        ("'/a b/c.jpg' is cut off", "'c.jpg' is cut off"),
        ("--data=/a/b", "--data=b"),
        ("/a/x, /b/y", "x, y"),
        *((text, text) for text in ("images/s", "a / b", "and/or", "../a/b", "data/train", "/", "2 / 3", "b'\\x00'")),
    ],
)
def test_paths_lose_their_folders(text: str, expected: str) -> None:
    assert without_folders(text) == expected


def test_text_is_escaped(run: Path) -> None:
    page = shown(run)
    assert "alert" not in "".join(page.texts("script"))
    assert any("alert(1)" in text for text in page.texts("th"))
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 1 + len(page.with_class("figure", "chart"))
    assert "<script>alert" not in page.source


def test_headline(run: Path) -> None:
    page = shown(run)
    assert page.texts("h1")[0].strip() == "resnet18"
    assert page.texts("title") == ["resnet18, first try"]
    assert "unfinished" in page.texts("span")
    facts = dict(zip(page.texts("dt"), zip(page.texts("dd")[::2], page.texts("dd")[1::2], strict=True), strict=False))
    assert facts["Step"] == ("400", "of 720, 56%; epoch 8.33")
    last = np.mean([line["loss"] for line in LINES[194:200]])  # 200 lines: five to the left, and itself
    assert facts["Loss"] == (number(float(last)), "mean of the last 6 logged; first 1")
    assert facts["Held-out loss"] == ("0.87", "lowest 0.87 at step 400")
    assert facts["Images/s"] == ("64", "median; 2 GiB at peak")
    assert facts["Training time"] == ("7 min", "5 min left")  # 400 and 320 steps of a second


@pytest.mark.parametrize(("first", "time"), [(2, "7 min"), (1, "7 min"), (282, "2 min")])
def test_training_time_is_that_of_the_steps_done_here(run: Path, first: int, time: str) -> None:
    """A run that was resumed from another folder's checkpoint begins at a later step."""
    config = json.loads((run / "config.json").read_text())
    config["run"]["log_every"] = 2
    (run / "config.json").write_text(json.dumps(config))
    lines = [training_line(first, 0.7), *(line for line in LINES if line["step"] > first)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = shown(run)
    assert dict(zip(page.texts("dt"), page.texts("dd")[::2], strict=False))["Training time"] == time


def test_scores_of_an_evaluation_are_not_those_of_the_run(run: Path) -> None:
    results = {"evaluation": "knn", "classes": ["a"], "test": {"top1": 0.5, "class_mean": 0.5}}
    (run / "results.json").write_text(json.dumps(results))
    assert "Scores" not in shown(run).texts("h2")


def test_finished(run: Path) -> None:
    (run / "plan.json").write_text(json.dumps({"steps": 400}))
    page = shown(run)
    assert "finished" in page.texts("span")
    assert not any("left" in text for text in page.texts("dd"))


@pytest.mark.parametrize(
    ("plan", "steps"),
    [
        ({"epochs": "15 (720 steps)"}, 720),
        ({"epochs": "300 (1,234,500 steps)"}, 1234500),
        ({"steps": "12,000"}, 12000),
        ({"steps": 7}, 7),
        ({"learning rate": "1, warm-up of 40 steps"}, None),
        ({"epochs": "15"}, None),
        ({}, None),
    ],
)
def test_planned_steps(plan: dict[str, object], steps: int | None) -> None:
    assert planned_steps(plan) == steps


def test_configuration_in_groups(run: Path) -> None:
    page = shown(run)
    assert {"general", "model", "data", "run"} <= set(page.texts("h3"))
    assert {"recipe", "densify_norm", "batch_size"} <= set(page.texts("th"))
    assert {"auto", "0.67, 1.0", "on"} <= set(page.texts("td"))
    assert "none" in page.texts("span")


def test_broken_images(run: Path) -> None:
    page = shown(run)
    assert f"30 images could not be read; the first {MOST_UNREADABLE}:" in page.texts("p")
    assert "image18.jpg" in page.texts("th")
    assert "image19.jpg" not in page.texts("th")  # the first line is the script's


def test_pictures_from_first_to_last(run: Path) -> None:
    page = shown(run)
    reds, alts = [], []
    for tag, attributes in page.elements:
        if tag == "img":
            kind, data = attributes["src"].split(",")
            assert kind == "data:image/jpeg;base64"
            with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
                assert picture.size == (40, 30)
                reds.append(picture.getpixel((20, 15))[0])
            alts.append(attributes["alt"])
    assert page.texts("figcaption")[0] == "Step 396"
    assert [int(alt.split()[-1]) for alt in alts[1:]] == [36, 108, 180, 252, 324, 396]
    assert reds == pytest.approx([220, 20, 60, 100, 140, 180, 220], abs=2)


def test_strips_are_the_last_row_of_a_grid(run: Path) -> None:
    grid = Image.new("RGBA", (50, 70), (122, 122, 122, 0))
    grid.paste((255, 0, 0), (0, 5, 50, 30))
    grid.paste((0, 0, 255), (0, 40, 50, 70))
    for path in (run / "reconstructions").iterdir():
        save_png(grid, path)
    sizes = []
    for tag, attributes in shown(run).elements:
        if tag == "img":
            with Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1]))) as picture:
                sizes.append(picture.size)
    assert sizes == [(50, 70)] + [(50, 30)] * 6


def test_one_picture_needs_no_strips(run: Path) -> None:
    for path in sorted((run / "reconstructions").iterdir())[1:]:
        path.unlink()
    page = shown(run)
    assert [tag for tag, _ in page.elements].count("img") == 1


def test_large_pictures_do_not_make_a_large_report(run: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (100, 230, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((2300, 1000), Image.Resampling.BICUBIC)
    first, *others = sorted((run / "reconstructions").iterdir())
    picture.save(first, compress_level=1)
    for path in others:
        path.write_bytes(first.read_bytes())
    assert write_report(run).stat().st_size < 4e6


def polyline(page: Page, name: str) -> np.ndarray:
    (line,) = [a for a in page.with_class("polyline", name) if "thin" not in a["class"]]
    return np.array([[float(v) for v in point.split(",")] for point in line["points"].split()])


def scale(page: Page, side: str, count: int) -> tuple[float, float]:
    """The value at 0 and the values per unit along a side of the first chart, as its tick labels have them."""
    ticks = [
        (10 * float(attributes["style"].removeprefix(f"{side}:").rstrip("%")), float(text.replace(",", "")))
        for _, attributes, text in page.text
        if attributes.get("style", "").startswith(f"{side}:")
    ]
    slope, start = np.polyfit(*zip(*ticks[:count], strict=True), 1)  # type: ignore[call-overload]
    return float(start), float(slope)


def read_off(page: Page, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a curve of the loss chart, measured against the tick labels as a reader would."""
    points = polyline(page, name)
    left, per_x = scale(page, "left", 3)
    top, per_y = scale(page, "top", page.with_class("path", "grid")[0]["d"].count("M"))
    return list(left + per_x * points[:, 0]), list(top + per_y * points[:, 1])


def test_curves_show_the_numbers(run: Path) -> None:
    page = shown(run)
    training = [line for line in LINES if "loss" in line]
    steps, values = read_off(page, "raw")
    assert steps == pytest.approx([line["step"] for line in training], abs=0.1)  # of 400: a tenth of a unit's 1000
    assert values == pytest.approx([line["loss"] for line in training], abs=2e-4)
    steps, values = read_off(page, "held-out")
    assert steps == pytest.approx([48, 400], abs=0.1)
    assert values == pytest.approx([0.91, 0.87], abs=2e-4)
    steps, values = read_off(page, "main")
    assert values == pytest.approx(list(smooth(np.array([line["loss"] for line in training]))), abs=2e-4)


def test_charts_have_data_for_the_read_out_and_a_description(run: Path) -> None:
    page = shown(run)
    charts = len(page.with_class("figure", "chart"))
    assert charts == 5  # loss, learning rate, weight decay, gradient norm, images/s
    data = [json.loads(text) for text in page.texts("script")[:charts]]
    assert [len(chart) for chart in data] == [3, 1, 1, 1, 1]
    assert data[0][2] == [[48, 400], [1.0, 8.33], [0.91, 0.87]]
    lines = [a for tag, a in page.elements if tag == "polyline"]
    for series, line in zip([s for chart in data for s in chart], lines, strict=True):
        assert [len(column) for column in series] == [len(line["points"].split())] * 3
    descriptions = [a["aria-label"] for tag, a in page.elements if a.get("role") == "img"]
    assert len(descriptions) == charts
    assert (
        descriptions[1] == "Learning rate over 400 steps: from 2.778e-6 to 5.556e-4, lowest 2.778e-6, highest 5.556e-4"
    )


def test_long_runs_are_thinned(run: Path) -> None:
    values = np.random.default_rng(0).normal(1, 0.1, 30_000)
    values[12_345], values[23_456] = 3.0, 0.1
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(training_line(i, float(v))) + "\n" for i, v in enumerate(values))
    )
    page = shown(run)
    _, drawn = read_off(page, "raw")
    assert 0.9 * MOST_POINTS < len(drawn) <= MOST_POINTS
    assert max(drawn) == pytest.approx(3.0, abs=0.01)
    assert min(drawn) == pytest.approx(0.1, abs=0.01)
    assert len(page.source) < 500_000


def test_a_cut_off_line_is_passed_over(run: Path) -> None:
    assert read_metrics(run / "metrics.jsonl") == LINES
    before = shown(run).source
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 999, "epoch": 20.8, "lo')
    assert read_metrics(run / "metrics.jsonl") == LINES
    assert shown(run).source == before


@pytest.mark.parametrize("name", ["config.json", "plan.json", "environment.json", "metrics.jsonl", "broken_images.txt"])
def test_a_missing_file_is_a_missing_section(run: Path, name: str) -> None:
    before = shown(run).texts("h2")
    assert before == ["Reconstructions", "Curves", "Plan", "Configuration", "Environment", "Unreadable images"]
    (run / name).unlink()
    section = {"config": "Configuration", "metrics": "Curves", "broken_images": "Unreadable images"}
    stem = name.split(".")[0]
    assert shown(run).texts("h2") == [title for title in before if title != section.get(stem, stem.capitalize())]


def test_an_empty_folder_makes_a_report(tmp_path: Path) -> None:
    page = shown(tmp_path)
    assert page.texts("h2") == []
    assert page.texts("h1") == [tmp_path.name]


def test_a_single_line_makes_charts(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(training_line(1, 0.75)) + "\n")
    page = shown(tmp_path)
    steps, values = read_off(page, "main")  # a line of no length, drawn as a dot
    assert steps == pytest.approx([1, 1])
    assert values == pytest.approx([0.75, 0.75])


def test_curve_takes_finite_values_and_the_later_of_two() -> None:
    lines = [
        {"step": 2, "epoch": 0.2, "loss": 5.0},
        {"step": 1, "epoch": 0.1, "loss": 7.0},
        {"step": 2, "epoch": 0.2, "loss": 6.0},
        {"step": 3, "epoch": 0.3, "loss": float("nan")},
        {"step": 4, "epoch": 0.4, "val_loss": 1.0},
    ]
    found = curve(lines, "loss")
    assert found.step.tolist() == [1, 2]
    assert found.epoch.tolist() == [0.1, 0.2]
    assert found.value.tolist() == [7, 6]
    assert len(curve(lines, "lr")) == 0


@pytest.mark.parametrize("count", [1, 799, 800, 801, 1000, 54_321])
def test_thinning_keeps_ends_and_extremes(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    kept = thin(values)
    assert len(kept) == min(count, len(kept)) <= MOST_POINTS
    assert (np.diff(kept) > 0).all()
    assert {0, count - 1, int(values.argmin()), int(values.argmax())} <= set(kept.tolist())
    if count <= MOST_POINTS:
        assert len(kept) == count


def test_smoothing_keeps_lines_straight_and_does_not_lag() -> None:
    ramp = np.arange(200.0)
    assert smooth(ramp)[:-5] == pytest.approx(ramp[:-5])  # 200 values: five to each side
    assert smooth(ramp)[-1] == pytest.approx(np.mean(ramp[-6:]))
    spike = np.zeros(200)
    spike[100] = 11.0
    assert smooth(spike).max() == pytest.approx(1.0)
    assert smooth(spike).sum() == pytest.approx(11.0)


@pytest.mark.parametrize(
    ("values", "options", "ticks"),
    [
        ([0.53, 1.08], {"parts": 6}, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)),
        ([0.0, 1.2e-3], {"zero": True}, (0.0, 5e-4, 1e-3, 1.5e-3)),
        ([57.0, 66.0], {"zero": True}, (0, 20, 40, 60, 80)),
        ([1.0, 720.0], {"zero": True, "whole": True, "tight": True}, (0, 200, 400, 600)),
        ([2.0], {"zero": True, "whole": True, "tight": True}, (0, 1, 2)),
        ([0.0], {"zero": True}, (0, 0.25, 0.5, 0.75, 1)),
        ([0.5, *[1.0] * 9, 5000.0], {}, (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)),
    ],
)
def test_ticks(values: list[float], options: dict[str, bool], ticks: tuple[float, ...]) -> None:
    found = axis(np.array(values), **options)
    assert found.ticks == pytest.approx(ticks)
    assert found.low <= min(values)
    assert found.high >= max(values)
    assert found.log == (max(values) == 5000)
    assert found.place(np.array([found.low, found.high])).tolist() == [0, 1]


def test_tick_labels() -> None:
    decimals = Axis(0.5, 0.6, (0.5, 0.55, 0.6))
    assert [decimals.label(t) for t in decimals.ticks] == ["0.50", "0.55", "0.60"]
    tiny = Axis(0, 1.5e-3, (0, 5e-4, 1e-3, 1.5e-3))
    assert [tiny.label(t) for t in tiny.ticks] == ["0", "5e-4", "1e-3", "1.5e-3"]
    halves = Axis(0, 0.01, (0, 0.0025, 0.005, 0.0075, 0.01))
    assert [halves.label(t) for t in halves.ticks] == ["0.0000", "0.0025", "0.0050", "0.0075", "0.0100"]
    large = Axis(0, 20000, (0, 10000, 20000))
    assert [large.label(t) for t in large.ticks] == ["0", "10,000", "20,000"]
    log = Axis(0.01, 1000, (0.01, 1, 100), log=True)
    assert [log.label(t) for t in log.ticks] == ["0.01", "1", "100"]
    assert log.place(np.array([0.1, 1.0])) == pytest.approx([0.2, 0.4])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.61234, "0.6123"),
        (0.5, "0.5"),
        (4e-5, "4e-5"),
        (1.25e-4, "1.25e-4"),
        (-2e-6, "-2e-6"),
        (12345.6, "12,346"),
        (999.7, "1,000"),
        (100.0, "100"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(42.4, "42 s"), (420, "7 min"), (12_000, "3 h 20 min"), (187_200, "2 days 4 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("low", [0.0, 1e-9, 3e-4, 0.5, 1.0000287, 250.0, 1e6])
@pytest.mark.parametrize("extent", [1e-9, 2.7e-5, 2.6713e-3, 0.3, 7.0, 4e4])
def test_no_two_ticks_of_an_axis_are_alike(low: float, extent: float) -> None:
    high = low + extent * max(1.0, low)
    made = axis(np.array([low, (low + high) / 2, high]))
    labels = [made.label(tick) for tick in made.ticks]
    assert len(set(labels)) == len(labels), labels
    assert max(map(len, labels)) < 22


NAMES = (
    "photos (1)/x.jpg",
    "roses [red]/12/x.jpg",
    "a{b}/c.jpg",
    "it's/x.jpg",
    "a: b/c d/x.jpg",
    "ä/é.jpg",
    "a<b>&/x.jpg",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_images_are_printed_as_they_are(tmp_path: Path, name: str) -> None:
    (tmp_path / "broken_images.txt").write_text(f"{name}\tOSError: cannot open /home/me/{name}\n")
    (tmp_path / "broken_held_out_images.txt").write_text(f"held/{name}\tempty\n")
    text = write_report(tmp_path).read_text()
    assert f"<th scope=row>{html.escape(name)}</th>" in text
    assert f"<th scope=row>held/{html.escape(name)}</th>" in text
    assert "/home" not in text


def test_of_names_outside_the_folder_the_last_part_is_printed() -> None:
    assert name_as_html("/data/photos (1)/x.jpg") == "x.jpg"
    assert name_as_html("C:\\photos\\x.jpg") == "x.jpg"
