"""The evidence for each planned claim, seed by seed: the mean difference with an interval that is valid at every look."""

from __future__ import annotations

import pandas as pd
from matplotlib.ticker import MaxNLocator

from icpctl.report import Report
from icpctl.report.claims import OUTCOMES, interval, t_statistic
from icpctl.report.figures.drawing import BLACK, axis_label, panels, plain
from icpctl.report.figures.style import BLUE, VERMILION, Drawing
from icpctl.runs.claims import Evidence
from icpctl.runs.measures import measure_of
from icpctl.statistics import sequential

COLOURS = {"supported": BLUE, "refuted": VERMILION, "undecided": BLACK}
MOST_PANELS = 12
HEIGHT = 2.1
"""Inches of a panel."""


def evidence_figures(report: Report) -> list[Drawing]:
    """A panel a claim that has been looked at more than once; none without such claims."""
    followed = [each for each in report.claims.evidence if len(each.p) > 1]
    if not followed:
        return []
    shown = followed[:MOST_PANELS]
    figure, axes = panels(len(shown), min(2, len(shown)), HEIGHT, "seeds")
    for one, each in zip(axes, shown, strict=True):
        path = _path(each)
        measure = measure_of(each.claim.metric)
        colour = COLOURS[OUTCOMES[each.is_supported]]
        scaled = path[["difference", "low", "high"]] * measure.scale
        one.axhline(0, color=BLACK, linewidth=1)
        if each.claim.margin is not None:
            one.axhspan(-each.claim.margin, each.claim.margin, color=BLACK, alpha=0.08, linewidth=0)
        one.fill_between(path["seeds"], scaled["low"], scaled["high"], color=colour, alpha=0.25, linewidth=0)
        one.plot(path["seeds"], scaled["difference"], color=colour, marker="o", markersize=3)
        one.set_title(plain(_title(each)), fontsize=8)
        one.set_ylabel(plain(f"difference, {axis_label(measure)}"), fontsize=8)
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        half = 1.6 * float((scaled["high"] - scaled["low"]).iloc[-1])
        middle = float(scaled["difference"].iloc[-1])
        one.set_ylim(middle - max(half, 2 * (each.claim.margin or 0)), middle + max(half, 2 * (each.claim.margin or 0)))
    text = (
        "The mean difference of each claim after each seed, with its 95 % interval, valid for all looks together. Shaded: the margin. "
        "e_value in the data: evidence against no difference, valid whatever the rule for stopping."
    )
    if len(followed) > len(shown):
        text += f" The first {MOST_PANELS} of {len(followed)} claims are drawn."
    data = pd.concat(
        [_path(each).assign(claim=each.claim.claim, outcome=OUTCOMES[each.is_supported]) for each in followed]
    )
    return [Drawing("claims-by-seed", "Evidence by seed", text, figure, data.reset_index(drop=True), verdicts=True)]


def _title(evidence: Evidence) -> str:
    claim = evidence.claim
    return f"{claim.subject} −\n{claim.other}: {OUTCOMES[evidence.is_supported]}"


def _path(evidence: Evidence) -> pd.DataFrame:
    """A row a look: seeds, difference, low, high, p, p_level, e_value."""
    rows = []
    for place, p in enumerate(evidence.p):
        seeds = evidence.claim.first + place
        x = evidence.differences[:seeds]
        low, high = interval(evidence, seeds)
        level = evidence.p_level[place] if evidence.p_level else None
        rows.append(
            (
                seeds,
                evidence.seeds[seeds - 1],
                float(x.mean()),
                low,
                high,
                p,
                level,
                sequential.e_value(t_statistic(x), seeds),
            )
        )
    columns = ["seeds", "seed", "difference", "low", "high", "p", "p_level", "e_value"]
    return pd.DataFrame(rows, columns=columns)
