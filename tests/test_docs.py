"""What the documentation shows is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sparkmim.sparse import execution

DOCS = Path(__file__).parent.parent / "docs"


def test_your_own_convnet(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {func: dict(by_class) for func, by_class in execution._RULES.items()}
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "your-own-convnet.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    torch.manual_seed(0)
    try:
        namespace: dict[str, object] = {}
        for number, block in enumerate(blocks):
            exec(compile(block, f"your-own-convnet.md, block {number}", "exec"), namespace)
    finally:
        execution._RULES.clear()
        execution._RULES.update(rules)
