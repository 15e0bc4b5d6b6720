"""What tests of pretraining share."""

from __future__ import annotations

import pytest

from sparkmim.pretraining.prepare import Pretraining


@pytest.fixture
def checked_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the network in one test of a module alone: that takes as long as a run."""
    if "from_f" not in request.node.name:
        monkeypatch.setattr(Pretraining, "check", lambda *_: None)
