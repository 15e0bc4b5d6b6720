"""Verbs in messages agree with the numbers before them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import sparkmim
from sparkmim.utils.text import verb

VERBS = (
    *("are", "have", "were", "do", "differ", "need", "lie", "exist", "hold", "fit", "remain", "show", "take", "share"),
    *("belong", "follow", "stay", "claim", "lack", "come", "go", "lead", "begin", "leave", "stand"),
)

AGREEING = re.compile(rf"^(?:'s)?(?: (?!can|must|may|will|to)[a-z'/-]+){{0,6}}? ({'|'.join(VERBS)})\b")
"""A verb for several that follows a number, perhaps after a few words of the same clause."""

NUMBER = re.compile(r"\b(len|sum|counted)\(|count|number|^(images|missing|lost|broken|skipped|twice|formulas|left)$")
"""Expressions that are numbers of things."""

SEVERAL = {
    ("models/spark.py", "channels do not fit a network for "),
    ("evaluation/features.py", "images that are scored"),
}
"""Messages in which there are always several, or in which the number does not count the subject."""


def unbending(path: Path) -> list[str]:
    """Return the messages of a file in which a verb for several follows a number that may be one."""
    found = []
    for text in ast.walk(ast.parse(path.read_text())):
        if not isinstance(text, ast.JoinedStr):
            continue
        for place, part in enumerate(text.values):
            if not isinstance(part, ast.FormattedValue) or not NUMBER.search(ast.unparse(part.value)):
                continue
            if ast.unparse(part.value).startswith(("verb(", "named(", "printable(", "'")):
                continue
            rest = "".join(
                str(later.value)
                if isinstance(later, ast.Constant)
                else (" verb " if "verb(" in ast.unparse(later) else "many")
                for later in text.values[place + 1 :]
            )
            former = text.values[place - 1] if place else None
            before = former.value if isinstance(former, ast.Constant) else ""
            if re.search(r"\b(of|the|of the|than the|for|into the) $", str(before)):
                continue  # the verb's number is another one: 1 of 3 images
            if AGREEING.match(rest):
                found.append(f"{path.name}:{text.lineno}: {{{ast.unparse(part.value)}}}{rest[:70]}")
    return found


def test_verbs_agree_with_numbers() -> None:
    root = Path(sparkmim.__file__).parent
    found = [
        line
        for path in sorted(root.rglob("*.py"))
        for line in unbending(path)
        if not any(str(path).endswith(name) and part in line for name, part in SEVERAL)
    ]
    assert not found, "\n".join(["expected verb(NUMBER, VERB) after a number:", *found])


@pytest.mark.parametrize(
    "line",
    [
        'f"{len(x)} images have no mask"',
        'f"{len(x)} of {n} images are missing"',
        "f\"{counted(number, 'image')} lie outside\"",
        'f"the {count} files of the list do not exist"',
    ],
)
def test_the_test_finds_them(line: str, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(line.replace("the {count}", "{count}"))
    assert len(unbending(path)) == 1
    path.write_text("f\"{len(x)} images {verb(len(x), 'have')} no mask\"")
    assert not unbending(path)


@pytest.mark.parametrize(
    ("several", "one"), [("are", "is"), ("have", "has"), ("were", "was"), ("do", "does"), ("lie", "lies")]
)
def test_verb(several: str, one: str) -> None:
    assert [verb(number, several) for number in (0, 1, 2)] == [several, one, several]
