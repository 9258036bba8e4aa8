"""Write what was found into README.md, and draw it, from the table of one study.

    python docs/findings.py            write the table and docs/images/findings.svg
    python docs/findings.py --check    exit with 1 if either is not current

To show another study, put its study.csv into benchmarks/results and change `STUDY`, `WHEN` and `COMMAND`. The study needs
one setting of the method, with `--controls --compute-matched`.
"""

from __future__ import annotations

import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from drawing import Picture

from icpctl.statistics import ALPHA
from icpctl.statistics.paired import compare, holm

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "benchmarks" / "results" / "digits-20-seeds.csv"
VERSION = "0.1"
WHEN = "two cores of an AMD EPYC, 2026-11-21"
COMMAND = "icpctl ablate resnet20 digits --epochs 8 --lr 3e-3 --grid optimizer=ademamix --controls --compute-matched --seeds 20"
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
    runs = pd.read_csv(STUDY).set_index("run_id", drop=False)
    accuracy = 100 * runs["accuracy"]
    parts = {"ICP": runs[runs["role"] == "method"]}
    parts |= {str(direction): part for direction, part in runs[runs["role"] == "control"].groupby("direction")}
    pairs = {}
    for name, part in parts.items():
        pairs[name, "baseline"] = part["run_id"], part["baseline_run"]
        pairs[name, "compute-matched"] = part["run_id"], part["matched_run"]
        if name != "ICP":
            pairs["ICP", name] = part["method_run"], part["run_id"]
    differences = {key: _compared(accuracy, ours, theirs) for key, (ours, theirs) in pairs.items()}
    corrected = holm(pd.Series({key: row["p"] for key, row in differences.items()}))
    rows = []
    for key, (subject, reference) in SHOWN.items():
        difference, low, high = (differences[key][name] for name in ("difference", "low", "high"))
        verdict = "cannot tell"
        if corrected[key] <= ALPHA:
            verdict = "better" if difference > 0 else "worse"
        rows.append(Finding(subject, reference, difference, low, high, verdict))
    return rows


def _compared(accuracy: pd.Series, ours: pd.Series, theirs: pd.Series) -> dict[str, float]:
    """The paired difference of two columns of run ids, its interval, and p."""
    left, right = (accuracy.loc[ids].to_frame().reset_index(drop=True) for ids in (ours, theirs))
    row = compare(left, right, pd.Series("all", index=left.index)).iloc[0]
    return {name: float(row[name]) for name in ("difference", "low", "high", "p")}


def table(rows: list[Finding]) -> str:
    """The findings as Markdown."""
    lines = ["| | compared with | accuracy, points (95 % interval) | verdict |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.ours} | {row.theirs} | {row.numbers} | {row.verdict} |" for row in rows]
    return "\n".join(lines) + "\n\n" + _caption() + "\n"


def _caption() -> str:
    runs = pd.read_csv(STUDY)
    method = runs[runs["role"] == "method"]
    assert method["group_id"].nunique() == 1, f"{STUDY} has several settings of the method"
    of = method.iloc[0]
    model = {"resnet20": "ResNet-20", "vae": "VAE"}.get(of["model"], of["model"])
    optimizer = {"ademamix": "AdEMAMix", "adam": "Adam", "sgd": "SGD"}[of["optimizer"]]
    said = f"{model} on {of['dataset']}, {optimizer}-ICP with T = {of['steps']:.0f}, {of['epochs']} epochs, {len(method)} seeds paired, version {VERSION}"
    return textwrap.fill(f"{said}; verdicts corrected by Holm; {WHEN}.", 80)


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
