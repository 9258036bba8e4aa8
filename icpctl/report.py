"""What a results folder says: one row a run, and one row a configuration over its seeds.

Numbers in the tables are fractions in [0, 1]; the tables for people (Rich, Markdown, LaTeX) give percent.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, assert_never

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from icpctl.config import SELECTION, RunConfig, declaration
from icpctl.errors import UserError
from icpctl.results import TIMINGS, RunRecord, read_runs, write_atomic

Format = Literal["csv", "markdown", "latex", "json"]


@dataclass(frozen=True)
class Measure:
    """How a column of numbers is shown to people."""

    heading: str
    scale: float = 1.0
    decimals: int = 2


MEASURES = {
    "classification": {
        "accuracy": Measure("accuracy %", 100),
        "f1_macro": Measure("macro F1 %", 100),
        "accuracy_best": Measure("best epoch %", 100),
        "difference": Measure("difference", 100),
    },
    "generation": {
        "ssim": Measure("SSIM", decimals=4),
        "psnr": Measure("PSNR dB"),
        "ssim_best": Measure("SSIM, best epoch", decimals=4),
        "difference": Measure("difference", decimals=4),
    },
}
"""The measures of each task; FID and KID come beside those of generation, as there may be several kinds of them."""

DISTANCES = {
    "fid_reconstruction": Measure("FID rec."),
    "fid_prior": Measure("FID prior"),
    "kid_reconstruction": Measure("KID rec.", decimals=4),
    "kid_prior": Measure("KID prior", decimals=4),
}

EXPLANATION = {
    "classification": "Accuracy and F1: test split, last epoch. Best epoch: test accuracy at the epoch that is best on the "
    "held-out images. Difference: accuracy less that of the baseline of the same seeds, in points.",
    "generation": "SSIM and PSNR of the reconstructions, FID and KID (lower is better): test split, last epoch. Best epoch: "
    "test SSIM at the epoch that is best on the held-out images. Difference: SSIM less that of the baseline of the same seeds.",
}

METHOD = frozenset(
    name
    for name in RunConfig.model_fields
    if name != "optimizer" and declaration(name).group in ("perturbation", "distillation")
)
"""The settings that mean nothing in a baseline."""


@dataclass(frozen=True)
class Report:
    """What `build` finds in a results folder."""

    runs: pd.DataFrame
    """One row a run, as `runs_table` makes it."""
    summary: pd.DataFrame
    """One row a configuration, as `summary_table` makes it; empty where no run is finished."""
    common: str
    """A sentence: the settings that the table does not show, for they are the same in all its rows."""
    notes: list[str]
    """Sentences: what is damaged, what is left out, what cannot be compared."""


def build(folder: Path, only: Collection[str] | None = None) -> Report:
    """Read a results folder, or the folder of one run. What is damaged is noted, the rest reported.

    Args:
        folder: a results folder, or the folder of one run.
        only: the ids of the runs to report; without it, all.

    Raises:
        UserError: the folder does not exist, or there is no run in it that can be read.
    """
    found, notes = read_runs(folder)
    found = [record for record in found if only is None or record.config.run_id in only]
    if not found:
        raise UserError(
            " ".join([f"There is no run to report in {folder}. `icpctl train --output {folder}` makes one.", *notes])
        )
    # Of two copies of a run the one in the run's own folder counts.
    found.sort(key=lambda record: record.path.name == record.config.run_id)
    records = {record.config.run_id: record for record in found}
    if len(records) < len(found):
        notes.append(f"Left out: {_count(len(found) - len(records), 'folder')} with a copy of a run that is there too.")

    notes += _noted(records.values())
    runs = runs_table(list(records.values()))
    failed = runs["state"] == "failed"
    unfinished = ~runs["state"].isin(["failed", "finished"])
    cut = (runs["state"] == "finished") & (runs["epochs_recorded"] < runs["epochs"])
    complete = runs[~(failed | unfinished | cut)]
    alone = complete[(complete["optimizer"] != "none") & _difference(complete).isna()]
    for concerned, what in (
        (runs[failed], "Failed and left out (status.json in the folder of a run says why)"),
        (runs[unfinished], "Not finished and left out"),
        (runs[cut], "Left out, for epochs are missing from metrics.csv"),
        (alone, "Not in the difference, for there is no finished baseline of the same seed"),
    ):
        if len(concerned):
            notes.append(f"{what}: {_count(len(concerned), 'run')}, {_some(concerned['run_id'])}.")
    if complete.empty:
        notes.append(f"No run in {folder} is finished, so there is nothing to compare yet.")

    groups = complete.drop_duplicates("group_id")["run_id"]
    settings, common = _settings([records[run_id].config for run_id in groups])
    for classifier, letter in _feature_letters(complete).items():
        common += f" FID and KID ({letter}): in the features of {classifier}."
    return Report(runs, summary_table(complete, settings), common, notes)


def runs_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row a run.

    Columns: run_id; group_id, the same for runs that differ in the seed alone; baseline_id, the group_id of the plain
    training that the run is compared with; every hyper-parameter; state, the last word of status.json;
    epochs_recorded; last_epoch and best_epoch, the latter the one of the highest accuracy, or SSIM of a generative model, on
    the validation split (the earliest of equals; none without that split); seconds, in total; and every metric of the test split at the last
    epoch and, with the suffix _best, at the best.
    """
    runs = pd.DataFrame([_identity(record) for record in records]).convert_dtypes()
    metrics = pd.concat({record.config.run_id: _reported(record.metrics) for record in records})
    metrics = metrics.reset_index(names=["run_id", "row"])
    test = metrics[(metrics["split"] == "test") & ~metrics["metric"].isin(TIMINGS)]
    selection = metrics["run_id"].map({record.config.run_id: record.config.selection for record in records})
    validation = metrics[(metrics["split"] == "val") & (metrics["metric"] == selection)].dropna()
    ranked = validation.sort_values(["value", "epoch"], ascending=[False, True])

    by_run = metrics.groupby("run_id")
    last_epoch = by_run["epoch"].max()
    best_epoch = ranked.groupby("run_id")["epoch"].first()
    measured = pd.DataFrame(
        {
            "epochs_recorded": by_run["epoch"].nunique(),
            "last_epoch": last_epoch,
            "best_epoch": best_epoch,
            "seconds": metrics[metrics["metric"] == "seconds"].groupby("run_id")["value"].sum(),
        }
    ).astype({"epochs_recorded": "Int64", "last_epoch": "Int64", "best_epoch": "Int64"})
    runs = runs.join(measured, on="run_id").fillna({"epochs_recorded": 0})
    return runs.join(_at(test, last_epoch), on="run_id").join(_at(test, best_epoch).add_suffix("_best"), on="run_id")


def write_runs(folder: Path, runs: pd.DataFrame) -> Path:
    """Write the table of runs to runs.csv in the results folder, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / "runs.csv"
    write_atomic(path, runs.to_csv(index=False).encode())
    return path


def summary_table(runs: pd.DataFrame, settings: Sequence[str] = ()) -> pd.DataFrame:
    """One row a configuration, over its seeds; each baseline above what is compared with it.

    Columns: group_id, task, model, dataset and `settings` (missing where they mean nothing: the method's in a baseline);
    seeds, how many; mean and standard deviation (of a sample, so none of one seed) of the measures of the tasks that there
    are; difference_seeds. The difference is the accuracy (SSIM of a generative model) less that of the baseline with the
    same seed, over the seeds that both have.

    Args:
        runs: the rows of `runs_table` that count.
        settings: the hyper-parameters to show beside model and dataset.
    """
    runs = runs.assign(difference=_difference(runs))
    measures = list(
        dict.fromkeys(name for task in sorted(set(runs["task"])) or MEASURES for name in _measures(task, runs))
    )
    runs = runs.reindex(columns=[*runs.columns, *(name for name in measures if name not in runs)])
    shown = list(dict.fromkeys(["task", "model", "dataset", *settings]))
    is_baseline = runs["optimizer"] == "none"
    inert = [name for name in shown if name in METHOD]
    runs[inert] = runs[inert].mask(is_baseline)
    plain = [name for name in shown if name not in {"optimizer", *METHOD}]
    ranks = [*plain, "method", *(name for name in shown if name not in plain)]
    order = runs.assign(method=~is_baseline).sort_values(ranks)

    groups = order.groupby("group_id", sort=False)
    statistics = groups[measures].agg(["mean", "std"])
    statistics.columns = statistics.columns.map("_".join)
    rows = order.drop_duplicates("group_id").set_index("group_id")[shown].convert_dtypes()
    differences = groups["difference"].count().rename("difference_seeds")
    return rows.join(groups.size().rename("seeds")).join(statistics).join(differences).reset_index()


def rich_tables(summary: pd.DataFrame, width: int = 80) -> dict[str, Table]:
    """The summary for a terminal, a table for each task; see `rich_table`."""
    return {_task(part): rich_table(part, width) for part in _by_task(summary)}


def rich_table(summary: pd.DataFrame, width: int = 80) -> Table:
    """The summary of one task for a terminal `width` columns wide, accuracies in percent.

    What all rows share of model, dataset and seeds stands above it. Where the room is short, deviations go below means
    and headings are broken; where it still is, the settings share one column, and at last KID is left out, which is said.
    """
    people, numbers = _for_people(summary)
    above = {name: people[name].iloc[0] for name in ("model", "dataset", "seeds") if people[name].nunique() == 1}
    people = people.drop(columns=list(above))
    gap = 2

    def too_wide(table: pd.DataFrame) -> bool:
        cells = [*table.itertuples(index=False), table.columns]
        widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*cells, strict=True)]
        return sum(widths) + gap * (len(widths) - 1) > width

    if too_wide(people):
        people = people.map(lambda text: text.replace(" ± ", "\n± "))
    if too_wide(people):
        people = people.rename(columns=lambda heading: heading.replace(" ", "\n"))
        numbers = [str(heading).replace(" ", "\n") for heading in numbers]
    if too_wide(people):
        settings = [heading for heading in people if heading not in numbers]
        together = people[settings].apply(
            lambda row: "\n".join(f"{name} {value}" for name, value in row.items() if value != "–"), axis="columns"
        )
        people = people.drop(columns=settings)
        people.insert(0, "settings", together)
    caption = None
    if too_wide(people):
        left_out = [heading for heading in people if str(heading).startswith("KID")]
        people = people.drop(columns=left_out)
        caption = "No room for KID: --format csv has it." if left_out else None
    table = Table(
        title=Text(", ".join(f"{name} {value}" for name, value in above.items()), "bold"),
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_lines="settings" in people,
        show_edge=False,
        pad_edge=False,
        padding=(0, gap - 1, 0, 0),  # and one of the box
    )
    for heading in people:
        table.add_column(str(heading), justify="right" if heading in numbers else "left", overflow="fold")
    for row in people.itertuples(index=False):
        table.add_row(*map(Text, row))
    return table


def render(report: Report, format: Format) -> str:
    """The summary as text: csv and json as it is, in fractions; markdown and latex (booktabs) in percent.

    What all rows share is said below a markdown table, in a comment above a latex one, and not in csv and json.
    """
    summary = report.summary
    match format:
        case "csv":
            return summary.to_csv(index=False)
        case "json":
            return summary.to_json(orient="records", indent=2, double_precision=15) + "\n"
        case "markdown":
            parts = [f"{_markdown(part)}\n\n{EXPLANATION[_task(part)]}" for part in _by_task(summary)]
            return "\n\n".join([*parts, report.common]) + "\n"
        case "latex":
            return f"% {report.common}\n" + "\n".join(map(_latex, _by_task(summary)))
        case _:
            assert_never(format)


def _markdown(summary: pd.DataFrame) -> str:
    people, numbers = _for_people(summary)
    align = ["right" if heading in numbers else "left" for heading in people]
    escaped = people.map(lambda text: text.replace("|", r"\|"))
    return escaped.to_markdown(index=False, disable_numparse=True, colalign=align)


def _latex(summary: pd.DataFrame) -> str:
    people, numbers = _for_people(summary)
    style = people.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    style = style.format(_latex_number, subset=numbers)
    columns = "".join("r" if heading in numbers else "l" for heading in people)
    return str(style.to_latex(hrules=True, column_format=columns))


def _identity(record: RunRecord) -> dict[str, Any]:
    config = record.config
    settings = {name: "+".join(value) if isinstance(value, tuple) else value for name, value in config}
    return {
        "run_id": config.run_id,
        "group_id": config.group_id,
        "baseline_id": config.baseline().group_id,
        "task": config.task,
        **settings,
        "state": str(record.status.get("state", "unknown")),
    }


def _reported(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows that the table needs: without the diagnostics, which are most of a results folder."""
    needed = metrics["split"].isin(["val", "test"]) | (metrics["metric"] == "seconds")
    return metrics.loc[needed, ["epoch", "split", "metric", "value"]]


def _at(metrics: pd.DataFrame, epochs: pd.Series) -> pd.DataFrame:
    """The metrics, a column each, of every run at its one of `epochs`; of a row given twice the later counts."""
    chosen = metrics[metrics["epoch"] == metrics["run_id"].map(epochs)]
    return chosen.pivot_table(index="run_id", columns="metric", values="value", aggfunc="last")


def _difference(runs: pd.DataFrame) -> pd.Series:
    """The accuracy (SSIM) of each run less that of its baseline with the same seed; missing for baselines."""
    score = pd.Series(float("nan"), index=runs.index)
    for task, selection in SELECTION.items():
        if selection in runs:
            score = score.mask(runs["task"] == task, runs[selection])
    reference = score.set_axis(pd.MultiIndex.from_frame(runs[["group_id", "seed"]]))
    baselines = pd.MultiIndex.from_frame(runs[["baseline_id", "seed"]])
    difference: pd.Series = score - reference.reindex(baselines).to_numpy()
    return difference.mask(runs["optimizer"] == "none")


def _measures(task: str, columns: Iterable[Hashable]) -> dict[str, Measure]:
    """The measures of a task; of FID and KID those that are among the columns, each kind of features by its own name."""
    measures = MEASURES[task]
    if task != "generation":
        return measures
    letters = _feature_letters(columns)
    names = dict.fromkeys(str(name).removesuffix("_mean") for name in columns)
    distances = {}
    for kind, measure in DISTANCES.items():
        if kind in names:
            distances[kind] = measure
        for classifier, letter in letters.items():
            if f"{kind}_by_{classifier}" in names:
                distances[f"{kind}_by_{classifier}"] = replace(measure, heading=f"{measure.heading} ({letter})")
    best = ("ssim_best", "difference")
    return {name: m for name, m in measures.items() if name not in best} | distances | {n: measures[n] for n in best}


def _feature_letters(columns: Iterable[Hashable]) -> dict[str, str]:
    """The classifiers whose features FID and KID are in, and a letter for each."""
    found = (re.fullmatch(r"[fk]id_[a-z]+_by_(.+?)(_best|_mean|_std)?", str(name)) for name in columns)
    classifiers = sorted({match[1] for match in found if match})
    return dict(zip(classifiers, string.ascii_lowercase, strict=False))


def _by_task(summary: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each task."""
    return [rows for _, rows in summary.groupby("task")] or [summary]


def _task(summary: pd.DataFrame) -> str:
    """The task of all rows; of none, any."""
    return str(summary["task"].iloc[0]) if len(summary) else "classification"


def _noted(records: Iterable[RunRecord]) -> list[str]:
    """What the runs' own notes say, each once: metrics that are missing, or not to be trusted."""
    counts = Counter(str(note) for record in records for note in record.status.get("notes", []))
    return [f"{_count(number, 'run')}: {note}" for note, number in counts.items()]


def _settings(configs: Sequence[RunConfig]) -> tuple[list[str], str]:
    """The settings that tell the configurations apart, and a sentence on those that they share.

    A setting that everywhere has its default is left unsaid, even where the default follows from another setting.
    """
    apart, shared = [], []
    for name, field in RunConfig.model_fields.items():
        if name in ("model", "dataset", "seed") or not declaration(name).identity:
            continue
        active = [config for config in configs if not (name in METHOD and config.optimizer == "none")]
        values = {getattr(config, name) for config in active}
        defaults = (field.get_default(call_default_factory=True, validated_data=config.__dict__) for config in active)
        if all(getattr(config, name) == default for config, default in zip(active, defaults, strict=True)):
            continue
        if len(values) > 1:
            apart.append(name)
        else:
            value = values.pop()
            shared.append(f"{name} {value_text(value)}")
    if not shared:
        return apart, "Settings that are not in the table have their defaults."
    return apart, f"The same in all rows: {', '.join(shared)}. Other settings have their defaults."


def _for_people(summary: pd.DataFrame) -> tuple[pd.DataFrame, list[Hashable]]:
    """The summary as text, and the headings of the columns that hold numbers. A measure that no row has is left out."""
    described = summary.loc[:, :"seeds"].drop(columns=["group_id", "task"])
    if len(summary):
        described = described.dropna(axis="columns", how="all")  # settings of the other task
    described = described.astype(object).map(value_text)
    measures = {
        measure.heading: _numbers(summary[f"{name}_mean"], summary[f"{name}_std"], measure, name == "difference")
        for name, measure in _measures(_task(summary), summary).items()
        if summary[f"{name}_mean"].notna().any()
    }
    return described.assign(**measures), ["seeds", *measures]


def _numbers(means: pd.Series, deviations: pd.Series, measure: Measure, signed: bool) -> list[str]:
    sign, digits = "+" if signed else "", measure.decimals
    return [
        "–" if pd.isna(mean) else f"{mean:{sign}.{digits}f}" + ("" if pd.isna(std) else f" ± {std:.{digits}f}")
        for mean, std in zip(measure.scale * means, measure.scale * deviations, strict=True)
    ]


def value_text(value: Any) -> str:
    """A value of a table or of a setting, for people."""
    if isinstance(value, tuple):
        return "+".join(value)
    if value is None or pd.isna(value):
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _latex_number(text: object) -> str:
    return str(text) if text == "–" else f"${text}$".replace("±", r"\pm")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _some(names: Iterable[str], limit: int = 3) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
