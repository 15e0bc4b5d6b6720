"""Format the outcome of a sweep as Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import date

import timm
import torch

from ...sparse.check_report import GRADIENT_TOLERANCE, TOLERANCE
from ...utils.text import verb
from .verdict import CHECKS, Verdict


def summary(verdicts: Sequence[Verdict]) -> str:
    """Return the number of networks that pass, as a sentence."""
    counting = _checked(verdicts)
    passed = [v for v in counting if v.passed]
    pending = sum(v.pending for v in verdicts)
    families = {v.family for v in counting}
    whole = [family for family in families if all(v.passed for v in counting if v.family == family)]
    others = len(verdicts) - len(counting) - pending
    share = f" ({len(passed) / len(counting):.1%})" if counting else ""
    return (
        f"{len(passed)} of {len(counting)} architectures pass{share} "
        f"(by name {_networks(passed)} of {_networks(counting)}), {len(whole)} of {len(families)} families "
        f"completely; {sum(v.is_wrong for v in counting)} return wrong numbers without an error; "
        f"{others} {verb(others, 'are')} not convolutional"
        + (f"; {pending} {verb(pending, 'were')} not checked" if pending else "")
    )


def _checked(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [v for v in verdicts if not v.excluded and not v.pending]


def _networks(verdicts: Sequence[Verdict]) -> int:
    return sum(1 + len(v.same) for v in verdicts)


def all_pass(verdicts: Sequence[Verdict]) -> bool:
    """Return whether every checked network passes."""
    return all(v.passed for v in _checked(verdicts))


def document(verdicts: Sequence[Verdict], command: str) -> str:
    """Return a document with the table, its date and command."""
    double, single = (TOLERANCE[dtype] for dtype in (torch.float64, torch.float32))
    gradients = GRADIENT_TOLERANCE[torch.float32]
    versions = Counter(v.versions for v in _checked(verdicts))
    of_versions = "; ".join(f"{number} by {version}" for version, number in versions.most_common())
    return f"""# Networks of timm on visible patches

{date.today()}, timm {timm.__version__}, torch {torch.__version__}: `{command}`

The numbers are the largest relative deviations of feature maps, gradients and running statistics, in evaluation and
training mode, on images of 2 x 3 patches. The tolerance is {double:g} in float64 and {single:g} ({gradients:g} for
gradients) in float32, marked in the table. (Large networks are checked in float32, and in float64 if float32 is not
precise enough; some networks convert to float32 themselves.) The patch size is the network's total stride, or twice the
total stride if the network is refused there. Networks that differ only in weights are checked once.
Checked: {of_versions}.

{table(verdicts)}"""


def table(verdicts: Sequence[Verdict]) -> str:
    """Return all outcomes: networks that were checked, why some fail, and why others are left out."""
    ordered = sorted(verdicts, key=lambda v: (v.family, v.parameters, v.model))
    counting = _checked(ordered)
    pending = [v for v in ordered if v.pending]
    failing = [v for v in counting if not v.passed]
    excluded = [v for v in ordered if v.excluded]
    lines = [
        summary(verdicts) + ".",
        "",
        "| family | model | patch, stride | maps (stride:channels) | parameters reached, not (million) | "
        + " | ".join(CHECKS)
        + " | |",
        "|---" * (6 + len(CHECKS)) + "|",
        *(_row(v) for v in counting),
    ]
    if failing:
        lines += ["", "## Networks that fail", ""]
        lines += [f"- **{v.model}**: {v.error or 'deviates without an error'}" for v in failing]
    if pending:
        lines += ["", "## Networks that were not checked", ""]
        lines += [", ".join(f"{v.model} ({v.parameters / 1e6:.0f} million parameters)" for v in pending)]
    if excluded:
        reasons: dict[tuple[str, str], list[str]] = {}
        for v in excluded:
            reasons.setdefault((v.family, v.excluded or ""), []).append(v.model)
        lines += ["", "## Networks that are not convolutional", ""]
        lines += [f"- {family}, {reason}: {', '.join(models)}" for (family, reason), models in reasons.items()]
    return "\n".join(lines) + "\n"


def _row(v: Verdict) -> str:
    maps = " ".join(f"{stride}:{channels}" for stride, channels in v.levels)
    stride = f"{v.patch}, {v.levels[-1][0]}" if v.levels else ""
    names = f"{v.model} ({', '.join(v.same)})" if v.same else v.model
    reached = f"{(v.parameters - v.unreached) / 1e6:.2f}, {v.unreached / 1e6:.2f}" if v.levels else ""
    checks = [_deviation(v.deviations.get(check)) for check in CHECKS]
    verdict = "WRONG" if v.is_wrong else "fails" if not v.passed else "" if v.precision == "float64" else v.precision
    return f"| {' | '.join([v.family, names, stride, maps, reached, *checks, verdict])} |"


def _deviation(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0e}" if math.isfinite(value) else "refused"
