"""Write what was found into README.md, and draw it, from the table of one study.

    python docs/findings.py            write the table and docs/images/findings.svg
    python docs/findings.py --check    exit with 1 if either is not current

To show another study, put its runs.csv into benchmarks/results and change `STUDY` and `WHEN`. The study needs one setting of the
method, with `--controls --compute-matched`.
"""

from __future__ import annotations

import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import results
from drawing import Picture

from icpctl.config.catalogue import variants
from icpctl.statistics import ALPHA
from icpctl.statistics.paired import holm

ROOT = Path(__file__).resolve().parent.parent
STUDY = "digits-20-seeds"
WHEN = "icpctl 0.1 (other order of the passes), AMD EPYC, 2026-11-21"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "findings.svg"
MARKED = re.compile(r"(<!-- findings -->\n).*?(<!-- end of findings -->)", re.DOTALL)

SHOWN = {
    ("ICP", "baseline"): ("ICP", "plain training, same epochs"),
    ("ICP", "compute-matched"): ("ICP", "plain training, compute-matched"),
    ("ICP", "random"): ("ICP", "the same, in a random direction"),
    ("ICP", "ascend"): ("ICP", "the same, in the opposite direction"),
    ("random", "baseline"): ("ICP, random", "plain training, same epochs"),
}
"""The rows of the table, of all comparisons; Holm's correction is over all of them."""


@dataclass(frozen=True)
class Finding:
    """A paired difference in accuracy, in points."""

    ours: str
    theirs: str
    difference: float
    low: float
    high: float
    verdict: str

    @property
    def numbers(self) -> str:
        """The difference and its interval, as text."""
        return f"{_signed(self.difference)} ({_signed(self.low)} to {_signed(self.high)})"


def findings() -> list[Finding]:
    """The rows of `SHOWN`."""
    study = results.study(STUDY)
    assert study is not None
    method = study.one("method=icp")
    groups = {"ICP": method, "baseline": study.baseline, "compute-matched": study.other("compute-matched", method)}
    groups |= {name: study.other(name, method) for name in ("random", "ascend")}
    pairs = {
        (name, other): (groups[name], groups[other])
        for name in ("ICP", "random", "ascend")
        for other in ("baseline", "compute-matched")
    }
    pairs |= {("ICP", name): (method, groups[name]) for name in ("random", "ascend")}
    found = {key: results.difference(*pair, "accuracy") for key, pair in pairs.items()}
    corrected = holm(pd.Series({key: each.p for key, each in found.items()}))
    rows = []
    for key, (subject, reference) in SHOWN.items():
        mean, low, high = (100 * value for value in (found[key].mean, found[key].low, found[key].high))
        verdict = "cannot tell"
        if corrected[key] <= ALPHA:
            verdict = "better" if mean > 0 else "worse"
        rows.append(Finding(subject, reference, mean, low, high, verdict))
    return rows


def table(rows: list[Finding]) -> str:
    """The findings as Markdown."""
    lines = ["| | compared with | accuracy, points (95 % interval) | verdict |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.ours} | {row.theirs} | {row.numbers} | {row.verdict} |" for row in rows]
    return "\n".join(lines) + "\n\n" + _caption() + "\n"


def _caption() -> str:
    study = results.study(STUDY)
    assert study is not None
    of, seeds = study.one("method=icp").first, len(study.one("method=icp").runs)
    model = {"resnet20": "ResNet-20", "vae": "VAE"}.get(of["model"], of["model"])
    said = f"{model} on {of['dataset']}, {variants()[of['optimizer']].label} with T = {of['steps']:.0f}, {of['epochs']} epochs, {seeds} paired seeds"
    return textwrap.fill(f"{said}; corrected by Holm; {WHEN}.", 80)


def picture(rows: list[Finding]) -> str:
    """The forest plot as SVG, for light and dark pages."""
    left, right, top, step = 290, 570, 44, 34
    ends = [0.0, *(row.low for row in rows), *(row.high for row in rows)]
    low, high = min(ends), max(ends)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    height = top + step * len(rows) + 44
    drawn = Picture(760, height, "Differences in accuracy with 95 % intervals: " + _words(rows))
    bottom = top + step * len(rows)
    drawn.line(place(0), top - 14, place(0), bottom, "axis")
    tick = 2 if high - low < 20 else 5
    for value in range(tick * -int(-low // tick), int(high) + 1, tick):
        drawn.text(place(value), bottom + 18, _whole(value), "small middle")
    drawn.text((left + right) / 2, bottom + 34, "difference in accuracy, points", "small middle")
    drawn.text(20, top - 16, "compared with", "small")
    for number, row in enumerate(rows):
        y = top + step * number + 12
        colour = {"better": "blue", "worse": "red"}.get(row.verdict, "grey")
        drawn.text(20, y + 5, row.theirs if row.ours == "ICP" else f"{row.ours} − {row.theirs.split(',')[0]}")
        drawn.line(place(row.low), y, place(row.high), y, f"bar {colour}")
        drawn.dot(place(row.difference), y, f"{colour}" if row.verdict != "cannot tell" else "hollow")
        drawn.text(right + 20, y + 5, row.numbers)
    return drawn.svg()


def _words(rows: list[Finding]) -> str:
    return "; ".join(f"{row.ours} minus {row.theirs} {row.numbers}, {row.verdict}" for row in rows)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _whole(value: int) -> str:
    return f"{value:+d}".replace("-", "−") if value else "0"


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    rows = findings()
    text = README.read_text(encoding="utf-8")
    wanted = {
        README: MARKED.sub(lambda found: found[1] + table(rows) + found[2], text),
        PICTURE: picture(rows),
    }
    if arguments != ["--check"]:
        for path, content in wanted.items():
            path.write_text(content, encoding="utf-8")
        return 0
    stale = [
        path for path, content in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != content
    ]
    for path in stale:
        print(f"{path} is not current: run `python docs/findings.py`.", file=sys.stderr)
    return len(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
