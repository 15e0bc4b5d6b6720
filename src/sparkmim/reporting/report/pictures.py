"""Pictures of a run, embedded in the page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .text import name_as_html

MOST_PICTURES = 6

BACKGROUND = (27, 29, 33)
"""Color of the transparent parts of a picture; the same as `--sheet` in style.css."""


def pictures(folder: Path) -> str:
    """Return the last reconstructions in full, then a strip of reconstructions for each of several steps."""
    paths = sorted(folder.glob("step-*.png"), key=_step_of)
    if not paths:
        return ""
    alt = "images, their visible patches, and their reconstructions"
    whole = (
        f"<figure><figcaption>Step {_step_of(paths[-1]):,}</figcaption>"
        f'<img alt="{alt}" src="{embed(_flat(paths[-1]))}"></figure>'
    )
    if len(paths) == 1:
        return f"<div class=pictures>{whole}</div>"
    chosen = sorted({round(i) for i in np.linspace(0, len(paths) - 1, min(MOST_PICTURES, len(paths)))})
    strips = "".join(
        f'<dt>step {_step_of(paths[i]):,}</dt><dd><img alt="reconstructions at step {_step_of(paths[i]):,}" '
        f'src="{embed(_flat(paths[i], last_row=True))}"></dd>'
        for i in chosen
    )
    over = f"<figure><figcaption>Over the run</figcaption><dl>{strips}</dl></figure>"
    return f"<div class=pictures>{whole}{over}</div>"


def _step_of(path: Path) -> int:
    found = re.search(r"\d+", path.stem)
    return int(found[0]) if found else 0


def _flat(path: Path, *, last_row: bool = False) -> Image.Image:
    """Return a picture on a dark background, or only the last row of its tiles, which begins below the last gap."""
    with open_own(path) as file:
        picture = file.convert("RGBA")
    if last_row:
        gaps = np.flatnonzero(np.asarray(picture.getchannel("A"))[:, 0] < 255)
        top = int(gaps[-1]) + 1 if len(gaps) and gaps[-1] + 1 < picture.height else 0
        picture = picture.crop((0, top, picture.width, picture.height))
    sheet = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
    sheet.alpha_composite(picture)
    sheet.thumbnail((1600, 1600), Image.Resampling.LANCZOS)
    return sheet.convert("RGB")


def picture_in(folder: Path, name: str) -> str | None:
    """Return a picture of a run, embedded; None if the folder does not hold it itself."""
    path = folder / Path(name).name  # never outside of it
    if not path.is_file() or path.is_symlink():
        return None
    with open_own(path) as file:
        return embed(file.convert("RGB"))


def figures_of(
    shown: Sequence[Mapping[str, Any]], folder: Path, caption: Callable[[Mapping[str, Any]], str], alt: str
) -> str:
    """Return pictures of images of a run; those that its folder does not hold are left out.

    Args:
        shown: name and picture of each image.
        folder: of the run.
        caption: of an image, before its name; HTML.
        alt: what the pictures show.
    """
    found = [(one, picture_in(folder, one["picture"])) for one in shown]
    return "".join(
        f"<figure><figcaption>{caption(one)} <small>{name_as_html(one['image'])}</small></figcaption>"
        f'<img alt="{alt}" src="{picture}"></figure>'
        for one, picture in found
        if picture is not None
    )


def open_own(path: Path) -> Image.Image:
    """Open a picture of a run: a PNG, as no other kind of what its folder may hold is written by sparkmim."""
    return Image.open(path, formats=("PNG",))


def embed(picture: Image.Image) -> str:
    """Return a picture as a data URL, compressed so that a report has a few megabytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
