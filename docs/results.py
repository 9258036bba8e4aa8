"""Write the tables of docs/results.md from the runs of its studies, one CSV each in benchmarks/results.

    python docs/results.py            write the tables
    python docs/results.py --check    exit with 1 if a table is not current, or if the text has a number with a decimal point
                                      that no table of its section has

A table stands between `<!-- table: KIND STUDY -->` and `<!-- end of table -->`. A study that is not there yet has a table that says so.
"""

from __future__ import annotations

import math
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from icpctl.config.catalogue import METHODS, variants
from icpctl.report.claims import OUTCOMES, interval
from icpctl.runs.claims import Pair, PlannedClaim, weigh
from icpctl.runs.measures import measure_of
from icpctl.statistics import ALPHA, LEAST_SEEDS
from icpctl.statistics.paired import compare, holm

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
RESULTS, STUDIES = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "studies"
BLOCK = re.compile(
    r"(<!-- table: (\S+) (\S+)(?: in (\S+))?(?: where (\S+))? -->\n).*?(<!-- end of table -->)", re.DOTALL
)
NOT_YET = "*Not run yet.*\n"
NOT_TESTED = "*The claims are not tested yet.*\n"

BESIDE = (
    *("generalization_gap_accuracy", "generalization_gap_ssim", "generalization_gap_loss", "ece", "brier", "sharpness"),
    *("accuracy_fgsm_8", "accuracy_pgd20_2", "accuracy_noise_16", "accuracy_blur_1"),
)
"""The measures of `beside`, as far as a study has them."""


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seed alone."""

    name: str
    runs: pd.DataFrame
    """Indexed by seed."""

    @property
    def first(self) -> pd.Series:
        return self.runs.iloc[0]

    @property
    def is_plain(self) -> bool:
        return bool(self.first["method"] == "plain")

    def altered(self, seed: int) -> Any:
        """The run of a seed, in the place of the configuration that has one."""
        return SimpleNamespace(run_id=self.runs["run_id"].get(seed, ""))


@dataclass(frozen=True)
class Study:
    """The groups of a study, the baseline first."""

    groups: list[Group]

    @property
    def baseline(self) -> Group:
        return min((g for g in self.groups if g.is_plain), key=lambda group: group.first["epochs"])

    def matched(self, group: Group) -> Group | None:
        """The compute-matched baseline: plain training of as many passes, to the nearest epoch; None where that is the baseline, or not there."""
        for plain in filter(lambda each: each.is_plain, self.groups):
            epoch = plain.first["passes"] / plain.first["epochs"]
            if abs(plain.first["passes"] - group.first["passes"]) < epoch:
                return None if plain is self.baseline else plain
        return None

    def one(self, text: str) -> Group:
        """The group of a claim's words."""
        conditions = {"direction": "descend"} | dict(each.replace("-", "_", 1).split("=") for each in text.split(","))
        plain = conditions.get("method") == "plain"
        (found,) = [
            g for g in self.groups if g.is_plain == plain and all(str(g.first[n]) == v for n, v in conditions.items())
        ]
        return found

    def other(self, text: str, of: Group) -> Group:
        """The group that a claim compares another one with."""
        if text == "baseline":
            return self.baseline
        if text == "compute-matched":
            return self.matched(of) or self.baseline  # of a method that costs nothing
        if text in ("random", "ascend"):
            same = ["method", "optimizer", "icp_reduction", "steps"]
            (found,) = [
                g for g in self.groups if g.first["direction"] == text and all(g.first[n] == of.first[n] for n in same)
            ]
            return found
        if text == "schedule":
            text = "method=schedule"
        return self.one(text)


@cache
def study(name: str, where: str = "") -> Study | None:
    """A study by the name of its CSV, of which a condition may take a part; None if it has not been run."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return None
    runs = pd.read_csv(path, keep_default_na=False, na_values=[""])
    if where:
        column, value = where.split("=")
        runs = runs[runs[column].astype(str) == value]
    if "method" not in runs:  # of version 0.1
        runs["method"] = runs["optimizer"].map(lambda optimizer: "plain" if optimizer == "none" else "icp")
    runs = runs[(runs["state"] == "finished") if "state" in runs else runs.index >= 0]
    plain = runs["method"].isin(["plain", "none"])
    runs["method"] = runs["method"].mask(plain, "plain")
    runs["direction"] = runs["direction"].fillna("descend")
    if "passes" not in runs:  # of version 0.1
        runs["passes"] = (3 * runs["epochs"]).where(plain)
    differing = {name for name in ("icp_reduction", "teacher_statistics", "layers", "pass_order", "steps", "icp_lr", "lr_schedule")
                 if name in runs and runs[~plain & (runs["method"] == "icp")][name].nunique() > 1}  # fmt: skip
    by_id = [part.set_index("seed").sort_index() for _, part in runs.groupby("group_id", sort=False)]

    def order(group: Group) -> tuple[bool, float, bool, str]:
        """Baselines first, by their epochs; then the methods by name, and the controls of their direction."""
        first = group.first
        turned = not group.is_plain and first["direction"] != "descend"
        return not group.is_plain, first["epochs"] if group.is_plain else 0, turned, group.name.casefold()

    return Study(sorted((Group(_name(part.iloc[0], differing), part) for part in by_id), key=order))


def _name(row: pd.Series, differing: Iterable[str]) -> str:
    """The name of a group on the page, with the settings in which the groups of the method differ."""
    if row["method"] == "plain":
        return f"baseline, {row['epochs']:,.0f} epochs"
    if row["method"] == "byot" and not row["byot_alpha"]:
        return "BYOT, heads alone"
    if row["method"] != "icp":
        return METHODS[row["method"]].label
    of_settings = {
        "icp_reduction": f"{row.get('icp_reduction')}",
        "teacher_statistics": ""
        if str(row.get("teacher_statistics")) == "True"
        else "no second update of the statistics",
        "layers": "" if str(row.get("layers")).count("+") else f"{row.get('layers')} alone",
        "pass_order": f"{row.get('pass_order')}",
        "steps": f"T = {row.get('steps'):.0f}",
        "icp_lr": f"η = {row.get('icp_lr'):g}",
        "lr_schedule": f"{row.get('lr_schedule')}",
    }
    if row["optimizer"] != "sgd":
        of_settings["icp_reduction"] = ""  # Adam divides it out
    more = [of_settings[name] for name in sorted(differing)]
    if row["direction"] != "descend":
        more.append({"ascend": "ascending", "random": "random"}[row["direction"]])
    return ", ".join([variants()[row["optimizer"]].label, *filter(None, more)])


@dataclass(frozen=True)
class Difference:
    """A paired difference and its interval, in the metric's own unit."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def difference(ours: Group, theirs: Group, metric: str) -> Difference:
    """Over the seeds that both have."""
    seeds = ours.runs.index.intersection(theirs.runs.index)
    left, right = (g.runs.loc[seeds, [metric]].astype(float).reset_index(drop=True) for g in (ours, theirs))
    row = compare(left, right, pd.Series("all", index=left.index)).iloc[0]
    return Difference(row["difference"], row["low"], row["high"], row["p"], int(row["seeds"]))


def groups(found: Study, name: str, metric: str) -> str:
    """Each group: passes, seeds, the metric, and its differences from the baseline and the compute-matched one.

    Where the study has planned claims, a difference that one is about has the claim's interval. Else a star is for p ≤ 0.05 among all
    differences of the table, by Holm's correction.
    """
    planned = {(e.pair.subject, e.pair.other): _shown(e) for e in weighed(found, name) if e.claim.metric == metric}
    pairs = {}
    for group in found.groups:
        for column, other in (("baseline", found.baseline), ("matched", found.matched(group))):
            if other is not None and other is not group and group is not found.baseline:
                pairs[group.name, column] = planned.get((group, other)) or difference(group, other, metric)
    cells = {key: _interval(pair, metric) for key, pair in pairs.items()} if planned else _starred(pairs, metric)
    shown = ["accuracy_best"] if metric == "accuracy" and f"{metric}_best" in found.baseline.runs else []
    header = [
        "",
        "passes",
        "seeds",
        *(measure_of(m).heading for m in (metric, *shown)),
        "− baseline",
        "− compute-matched",
    ]
    rows = [
        [group.name, _count(group.first["passes"]), str(len(group.runs))]
        + [_value(group.runs[m], m) for m in (metric, *shown)]
        + [cells.get((group.name, other), "–") for other in ("baseline", "matched")]
        for group in found.groups
    ]
    if all(row[-1] == "–" for row in rows):
        rows, header = [row[:-1] for row in rows], header[:-1]
    return _table(header, rows)


def weighed(found: Study, name: str) -> list[Any]:
    """The evidence of the planned claims of a study; none where it has no study file, or no claims."""
    path = STUDIES / f"{name}.toml"
    plan = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not plan.get("claims"):
        return []
    most = plan.get("max-seeds") if plan.get("until-decided") else None
    seeds = tuple(range(max(part["seeds"] for part in plan["study"])))
    bound: list[Any] = []
    for text in plan["claims"]:
        claim = PlannedClaim.parse(text, plan.get("margin")).model_copy(update={"seeds": seeds, "max_seeds": most})
        subject = found.one(claim.subject)
        bound.append((claim, Pair(subject, found.other(claim.other, subject), claim.other)))  # type: ignore[arg-type]
    runs = pd.concat([group.runs for group in found.groups]).set_index("run_id")
    metrics = {claim.metric for claim, _ in bound}
    return weigh(bound, {m: {str(i): float(value) for i, value in runs[m].items()} for m in metrics})


def _shown(evidence: Any) -> Difference:
    """The difference of a claim with its interval, which is valid for all looks together; before the first look it has none."""
    x, claim = evidence.differences, evidence.claim
    mean = float(x.mean()) if len(x) else math.nan
    low, high = interval(evidence, len(x)) if len(x) >= claim.first else (math.nan, math.nan)
    return Difference(mean, low, high, evidence.p_holm, len(x))


def claims(found: Study, name: str, metric: str) -> str:
    """The planned claims: difference, interval and p values, valid for all looks together, and what they come to."""
    rows = []
    for evidence in weighed(found, name):
        pair, relation = evidence.pair, evidence.claim.relation
        looked = len(evidence.seeds) >= evidence.claim.first
        outcome = OUTCOMES[evidence.is_supported] + (f": {v}" if (v := evidence.verdict) != "cannot tell" else "")
        rows.append(
            [
                f"{pair.subject.name} {relation} {'with' if relation == 'level' else 'than'} {pair.other.name}",
                str(len(evidence.seeds)),
                _interval(_shown(evidence), evidence.claim.metric),
                *(_p(p if looked else math.nan) for p in (evidence.p_holm, evidence.p_level_holm)),
                outcome,
            ]
        )
    header = ["claim", "seeds", "difference, interval", "p: no difference", "p: beyond the margin", "outcome"]
    return _table(header, rows)


def beside(found: Study, name: str, metric: str) -> str:
    """Other differences from the baseline of equal epochs: in the gap, the calibration, the sharpness, the robustness."""
    measures = [m for m in BESIDE if m in found.baseline.runs and found.baseline.runs[m].notna().all()]
    rows = [
        [
            group.name,
            *("–" if group is found.baseline else _interval(difference(group, found.baseline, m), m) for m in measures),
        ]
        for group in found.groups
    ]
    rows[0] = [f"{found.baseline.name}: its value", *(_value(found.baseline.runs[m], m) for m in measures)]
    return _table(["", *(measure_of(m).heading for m in measures)], rows)


def parts(found: Study, name: str, metric: str) -> str:
    """The difference of each form of the method from its schedule alone."""
    (alone,) = (group for group in found.groups if group.first["method"] == "schedule")
    pairs = {g.name: difference(g, alone, metric) for g in found.groups if not g.is_plain and g is not alone}
    return _table(["", f"− {alone.name}"], [list(row) for row in _starred(pairs, metric).items()])


KINDS: dict[str, Callable[[Study, str, str], str]] = {
    "groups": groups,
    "claims": claims,
    "beside": beside,
    "parts": parts,
}


def _value(values: pd.Series, metric: str) -> str:
    """Mean ± standard deviation over the seeds."""
    measure, values = measure_of(metric), values.astype(float)
    if len(values) < 2:
        return measure.value(values.mean())
    spread = values.std(ddof=1)
    return f"{measure.value(values.mean(), beside=spread)}\u00a0±\u00a0{measure.value(spread)}"


def _interval(found: Difference, metric: str) -> str:
    """The difference, and its interval where there are seeds for one."""
    measure = measure_of(metric)
    if math.isnan(found.low):
        return measure.value(found.mean, signed=True)
    half = (found.high - found.low) / 2
    mean, low, high = (measure.value(value, signed=True, beside=half) for value in (found.mean, found.low, found.high))
    return f"{mean} ({low}\u00a0to\u00a0{high})"


def _starred(pairs: dict[Any, Difference], metric: str) -> dict[Any, str]:
    """Differences with their intervals, and a star for p ≤ 0.05 among all of them, by Holm's correction."""
    enough = {key: pair.p for key, pair in pairs.items() if pair.seeds >= LEAST_SEEDS}
    corrected: dict[Any, float] = holm(pd.Series(enough, dtype=float)).to_dict() if enough else {}
    return {
        key: _interval(pair, metric) + ("\u00a0*" if corrected.get(key, 1.0) <= ALPHA else "")
        for key, pair in pairs.items()
    }


def _count(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.0f}"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    aligned = ["---", *["---:"] * (len(header) - 1)]
    return "".join("| " + " | ".join(row) + " |\n" for row in [header, aligned, *rows])


def written(text: str) -> str:
    """The page with its tables as they are by the CSVs."""

    def block(match: re.Match[str]) -> str:
        found = study(match[3], match[5] or "")
        if found is None:
            content = NOT_TESTED if match[2] == "claims" else NOT_YET
        else:
            content = KINDS[match[2]](found, match[3], match[4] or "accuracy")
        return f"{match[1]}\n{content}\n{match[6]}"

    return BLOCK.sub(block, text)


NUMBER = re.compile(r"(?<![\w.])[+−]?\d[\d,]*\.\d+")
NOT_FOUND_OUT = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|(?:η = |p ≤ |version |torch )[\d.]*\d", re.DOTALL)
"""Code, the targets of links, and settings."""


def unfounded(text: str) -> list[str]:
    """Numbers with a decimal point that no table has, each with the title of its section; where a section has tables, of these."""
    found = []
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        blocks = "".join(match[0] for match in BLOCK.finditer(section if BLOCK.search(section) else text))
        known = {number.lstrip("+−") for number in NUMBER.findall(blocks)}
        prose = NOT_FOUND_OUT.sub("", BLOCK.sub("", section))
        title = section.partition("\n")[0].lstrip("# ")
        found += [f"{title}: {number}" for number in NUMBER.findall(prose) if number.lstrip("+−") not in known]
    return found


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    text = PAGE.read_text(encoding="utf-8")
    wanted = written(text)
    if arguments != ["--check"]:
        PAGE.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        print(f"{PAGE} is not current: run `python docs/results.py`.", file=sys.stderr)
    faults = unfounded(wanted)
    for fault in faults:
        print(f"{PAGE}: no table has this number of the text: {fault}", file=sys.stderr)
    return int(bool(faults) or (arguments == ["--check"] and wanted != text))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
