"""The report as text: tables for the terminal, Markdown, LaTeX in the shape of a paper's table, CSV, JSON."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Literal, assert_never

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from icpctl.config import SELECTION
from icpctl.report import Report
from icpctl.report.comparison import VERDICTS
from icpctl.report.groups import AGAINST, short_dataset, value_text
from icpctl.report.measures import (
    EFFECT,
    MARK,
    Measure,
    feature_letters,
    interval_half,
    measure_of,
    p_text,
    shown_metrics,
)
from icpctl.report.statistics import LEAST_SEEDS, MOST_SEEDS, ROUNDING
from icpctl.runs.table import COSTS, records
from icpctl.text import csv_text

Format = Literal["csv", "markdown", "latex", "json"]

MOST_ROWS = 100
"""Rows of a table in the terminal; and sentences in Markdown."""
SENTENCES = 8
"""Comparisons of which the terminal shows all the sentences; of more it shows those that claim something."""
SHORT = {"baseline": "baseline", "compute-matched": "equal compute", "ascend": "ascend", "random": "random"}
"""What a difference is taken from, for the heading of a column."""
GAP = 2
INTERVAL = "95 % interval"
Columns = dict[str, list[tuple[str, Any]]]
"""Headings, and the cells below: what is shown, and what it is sorted by, which of text is empty."""


def explanation(report: Report, task: str, interval: bool = True) -> str:
    """What the columns of the tables of a task are; `interval`, whether that of the mean is one."""
    measure = measure_of(report.metrics[task])
    held_out = measure_of(SELECTION[task]).name
    less = " FID and KID: less is better." if task == "generation" else ""
    marked = (
        f" {MARK}: of the seeds that have a value; others failed, or have none that is finite."
        if lacks(report, task)
        else ""
    )
    by_t = f"; 95 % interval of the mean {measure.name} by t" if interval else ""
    return (
        f"Test split, last epoch; best epoch: the one of the best {held_out} on the held-out images. Mean ± standard deviation "
        f"over the seeds{by_t}.{less} Passes: of a training image through the network.{marked}"
    )


def lacks(report: Report, task: str) -> bool:
    """Whether a number of the tables of a task is of a part of the seeds."""
    summary = report.summary
    return bool((summary["lacking"][summary["task"] == task] > 0).any())


def compared(report: Report, task: str) -> pd.DataFrame:
    """The comparisons in the metric that the report is about."""
    table = report.comparisons
    return table[(table["task"] == task) & (table["metric"] == report.metrics[task])]


def scorecard(table: pd.DataFrame) -> pd.DataFrame:
    """How many runs of the method are better and worse than what they are compared with: a row for each of `AGAINST`.

    Controls are counted only if there is no run of the method.
    """
    method = table[table["role"] == "method"]
    counted = method if len(method) else table
    counts = pd.crosstab(counted["against"], counted["verdict"])
    kinds = [against for against in AGAINST if against in counts.index]
    there = [verdict for verdict in VERDICTS if verdict in counts or verdict in VERDICTS[:3]]
    return counts.reindex(index=kinds, columns=there, fill_value=0)


def who(table: pd.DataFrame) -> str:
    """Whose comparisons the score card counts."""
    return "the method" if (table["role"] == "method").any() else "controls"


def heading_of(report: Report, task: str, metric: str) -> str:
    """The heading of the column of a metric, which no other column has."""
    letters = feature_letters(report.summary["metric"][report.summary["task"] == task])
    heading = measure_of(metric, letters).heading
    return f"metric {heading}" if heading in ("group", "seeds", INTERVAL, *setting_columns(report)) else heading


def setting_columns(report: Report) -> tuple[str, ...]:
    """The columns of `summary_cells` that are settings."""
    return ("model", "dataset", "data", *report.grouping.settings)


def sentences(table: pd.DataFrame, limit: int) -> list[str]:
    """The sentences of all comparisons. Of more than `limit` so many, and how many others there are: those that claim a
    difference, then those of the method with its baselines.
    """
    if len(table) <= limit:
        return table["sentence"].tolist()
    baselines = table["against"].isin(["baseline", "compute-matched"]).astype(int)
    rank = 3 - table["role"].eq("method").astype(int) - baselines
    rank = rank.mask(table["verdict"].isin(["better", "worse"]), 0)
    said = table.loc[rank.sort_values(kind="stable").index[:limit].sort_values(), "sentence"].tolist()
    return [*said, f"{len(table) - len(said)} more are in comparisons.csv and report.html."]


def at_best_epoch(report: Report, task: str) -> pd.DataFrame:
    """The comparisons at the best epoch that say something else than those at the last: is it the last epoch, or luck?"""
    last, best = report.metrics[task], f"{report.metrics[task]}_best"
    table = report.comparisons
    table = table[table["task"] == task]
    said = table[table["metric"] == last].set_index(["group_id", "against"])["verdict"]
    there = table[table["metric"] == best]
    other = said.reindex(pd.MultiIndex.from_frame(there[["group_id", "against"]])).to_numpy()
    changed: pd.DataFrame = there[there["verdict"].to_numpy() != other]
    return changed


def terminal(report: Report, width: int) -> Iterator[RenderableType]:
    """What is printed, `width` columns wide: of each task its groups, its comparisons and what they say."""
    for task in report.metrics:
        yield rich_table(report, task, width)
        yield Text(explanation(report, task), "dim")
        table = compared(report, task)
        if len(table):
            measure = measure_of(report.metrics[task])
            unit = f", {'points' if measure.unit == '%' else measure.unit}" if measure.unit else ""
            yield Text(f"\nDifferences in {measure.name}{unit}, paired by seed", "bold")
            yield rich_comparisons(table, measure, width)
            yield Text(
                "p: two-sided paired t test, corrected over all comparisons of the metric (Holm). d: mean difference in standard "
                "deviations of the differences. Needs: so many seeds would show a difference as large as this.",
                "dim",
            )
            yield Text(f"\nWhat the comparisons of {who(table)} say", "bold")
            yield rich_scorecard(scorecard(table))
            yield from (Text(f"• {sentence}") for sentence in sentences(table, SENTENCES))
            changed = at_best_epoch(report, task)
            if len(changed):
                yield Text("\nAt the best epoch these say something else", "bold")
                yield from (Text(f"• {sentence}") for sentence in sentences(changed, SENTENCES))
            yield Text("")
    yield Text(report.common)


def rich_scorecard(card: pd.DataFrame) -> Table:
    """How many comparisons say what."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="")
    table.add_column("with", min_width=len(max(AGAINST.values(), key=len)))
    for verdict in card:
        table.add_column(str(verdict), justify="right")
    for against, row in card.iterrows():
        table.add_row(AGAINST[str(against)], *map(str, row))
    return table


def rich_table(report: Report, task: str, width: int) -> Table:
    """The groups of a task. What all rows share stands above; the settings are in the groups' names.

    Where the room is short, headings and deviations are broken, and at last columns are left out, which is said.
    """
    cells, above = summary_cells(report, task)
    people = texts({name: cells[name] for name in cells if name not in setting_columns(report)}, report, task)
    chosen = heading_of(report, task, report.metrics[task])
    rows = len(people)
    people = people.head(MOST_ROWS)

    def too_wide() -> bool:
        cells = [*people.itertuples(index=False), people.columns]
        widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*cells, strict=True)]
        return sum(widths) + GAP * (len(widths) - 1) > width

    if too_wide():
        people["group"] = people["group"].map(_fold)
    if folded := too_wide():
        people = people.map(lambda text: text.replace(" ± ", "\n± ").replace(" to ", "\nto "))
    if too_wide():
        people = people.rename(columns=lambda heading: heading.replace(" ", "\n"))
    left_out: list[str] = []
    for words in ("images/s", "KID", "time", "95", "passes", "macro"):
        if too_wide():
            plain = {heading: heading.replace("\n", " ") for heading in map(str, people)}
            dropped = [each for each, text in plain.items() if text.startswith(words) and text != chosen]
            short = words in ("images/s", "KID", "time")
            left_out += [words] * bool(dropped) if short else [plain[each] for each in dropped]
            people = people.drop(columns=dropped)
    captions = [f"No room for {', '.join(left_out)}: summary.csv has it."] if left_out else []
    if rows > len(people):
        captions.append(f"{rows - len(people)} more rows are in summary.csv and report.html; --where and --by choose.")
    table = Table(
        title=Text(above, "bold"),
        title_justify="left",
        caption=Text(" ".join(captions)) if captions else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_lines=folded,
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),  # and one of the box
    )
    for heading in map(str, people):
        table.add_column(Text(heading), justify="left" if heading == "group" else "right", overflow="fold")
    for row in people.itertuples(index=False):
        table.add_row(*map(Text, row))
    return table


def rich_comparisons(table: pd.DataFrame, measure: Measure, width: int) -> RenderableType:
    """Each group's name, and below it a line for each comparison; where the room is short, without the effect size."""
    shown = table.head(MOST_ROWS)
    heading = ["minus", "", INTERVAL, "p", "d", "says", "needs"]
    cells = {group_id: _comparison_cells(rows, measure) for group_id, rows in shown.groupby("group_id", sort=False)}
    lines = [heading, *(line for rows in cells.values() for line in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left_out = []
    for name in ("d", "needs", INTERVAL):
        if 2 + sum(widths) + GAP * (len(widths) - 1) > width:
            left_out.append(name)
            place = heading.index(name)
            for line in (*lines, widths):
                del line[place]  # type: ignore[attr-defined]

    def block(rows: Sequence[list[str]]) -> Padding:
        grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        for across, name in zip(widths, heading, strict=True):
            grid.add_column(width=across, justify="left" if name in ("minus", "says") else "right", no_wrap=True)
        for row in rows:
            style = {"better": "green", "worse": "red"}.get(row[heading.index("says")], "")
            grid.add_row(*(Text(cell, style) for cell in row))
        return Padding(grid, (0, 0, 0, 2))

    parts: list[RenderableType] = [block([heading])]
    labels = shown.drop_duplicates("group_id").set_index("group_id")["label"]
    for group_id, rows in cells.items():
        parts += [Text(labels[group_id]), block(rows)]
    if left_out:
        parts.append(Text(f"No room for {', '.join(left_out)}: comparisons.csv has it."))
    if more := len(table) - len(shown):
        parts.append(Text(f"{more} more comparisons are in comparisons.csv and report.html; --where and --by choose."))
    return Group(*parts)


def _comparison_cells(rows: pd.DataFrame, measure: Measure) -> list[list[str]]:
    return [
        [
            f"− {SHORT[row['against']]}",
            difference_text(row, measure),
            interval_text(row, measure, signed=True),
            p_text(row["p_holm"]),
            effect_text(row),
            row["verdict"],
            needed_text(row),
        ]
        for row in records(rows)
    ]


def _fold(label: str, width: int = 26) -> str:
    """Broken after commas alone, where it can be."""
    return "\n".join(textwrap.wrap(label.replace(", ", ",\0").replace(" ", "\u00a0").replace("\0", " "), width))


def needed_text(row: Any) -> str:
    """How many seeds would show a difference that these cannot; empty where that is no question."""
    if row["verdict"] != "cannot tell" or row["lacking"]:
        return ""
    return f"> {MOST_SEEDS:,}" if pd.isna(row["seeds_needed"]) else f"{row['seeds_needed']:,}"


def difference_text(row: Any, measure: Measure) -> str:
    """The difference of a comparison, marked where it is of a part of the seeds; a dash where there is none."""
    text = measure.value(row["difference"], signed=True, beside=interval_half(row))
    return text + MARK if row["lacking"] and row["seeds"] else text


def interval_text(row: Any, measure: Measure, signed: bool = False) -> str:
    """The ends of an interval; a dash where there is none."""
    if pd.isna(row["low"]):
        return "–"
    low, high = (measure.value(row[end], signed, interval_half(row)) for end in ("low", "high"))
    return f"{low} to {high}"


def effect_text(row: Any) -> str:
    """Cohen's d; a dash where there is none, or so few seeds that it says nothing."""
    if pd.isna(row["effect"]) or row["seeds"] < LEAST_SEEDS:
        return "–"
    return EFFECT.value(row["effect"], signed=True)


def texts(cells: Columns, report: Report, task: str) -> pd.DataFrame:
    """The cells as text, a row a group."""
    columns = {heading: [text for text, _ in column] for heading, column in cells.items()}
    return pd.DataFrame(columns, index=groups_of(report, task).index)


def groups_of(report: Report, task: str) -> pd.DataFrame:
    """The rows of the groups of a task."""
    groups = report.grouping.table
    return groups[groups["task"] == task]


def summary_cells(report: Report, task: str) -> tuple[Columns, str]:
    """The columns of the table of the groups of a task, each cell as text and as what it is sorted by.

    The name of the group; seeds; the metrics that are shown, the chosen one first, with its interval; costs; and model, data
    set and settings, which the name says too, so that they can be sorted by. A metric that no group has is left out. What is
    the same in all rows is no column: it is returned beside them, in words.
    """
    summary = report.summary[report.summary["task"] == task]
    rows = groups_of(report, task)
    chosen = report.metrics[task]
    by_metric = {
        str(metric): part.set_index("group_id").reindex(rows.index) for metric, part in summary.groupby("metric")
    }
    described = rows[list(setting_columns(report))].dropna(axis="columns", how="all")
    short = described["dataset"].map(short_dataset)
    if short.nunique() == described["dataset"].nunique():
        described = described.assign(dataset=short)
    settings: Columns = {
        str(name): [(value_text(value), _sorted_by(value)) for value in column.astype(object)]
        for name, column in described.items()
    }
    counts = by_metric[chosen][["seeds", "lacking"]].fillna(0).astype(int)
    settings["seeds"] = [
        (f"{number}/{number + lacking}" if lacking else str(number), number)
        for number, lacking in counts.itertuples(index=False)
    ]
    same = [name for name, column in settings.items() if len(set(column)) == 1]
    words = ", ".join(f"{name} {settings.pop(name)[0][0]}" for name in same)
    cells: Columns = {"group": [(label, "") for label in rows["label"]]}
    if "seeds" in settings:
        cells["seeds"] = settings.pop("seeds")
    for metric in (*shown_metrics(task, by_metric, chosen), *COSTS):
        part = by_metric.get(metric)
        if part is None or part["mean"].isna().all():
            continue
        measure, heading = measure_of(metric), heading_of(report, task, metric)
        of_groups = records(part)
        cells[heading] = [(mean_text(row, measure, metric not in COSTS), row["mean"]) for row in of_groups]
        if metric == chosen and part["low"].notna().any():
            cells[INTERVAL] = [(interval_text(row, measure), row["low"]) for row in of_groups]
    return cells | settings, words


def _sorted_by(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def mean_text(row: Any, measure: Measure, spread: bool = True) -> str:
    """Mean ± standard deviation, marked where it is of a part of the seeds."""
    std = row["std"] if spread and abs(row["std"]) > ROUNDING * abs(row["mean"]) else 0.0 * row["std"]
    text = measure.value(row["mean"], beside=std if spread else math.nan)
    if spread and not pd.isna(std):
        text += f" ± {measure.value(std)}"
    return text + MARK if row["lacking"] > 0 and not pd.isna(row["mean"]) else text


def render(report: Report, format: Format) -> str:
    """The report as text: csv, the summary as it is; json, all of it; markdown and latex (booktabs) for people."""
    match format:
        case "csv":
            return csv_text(report.summary)
        case "json":
            return _json(report)
        case "markdown":
            parts = [part for task in report.metrics for part in _markdown(report, task)]
            notes = "".join(f"- {escaped(note)}\n" for note in report.notes)
            return "\n".join([*parts, escaped(report.common), "", *(["Notes:", "", notes] if notes else [])])
        case "latex":
            from icpctl.report.latex import latex

            return "\n".join(latex(report, task) for task in report.metrics) or f"% {report.common}\n"
        case _:
            assert_never(format)


def _json(report: Report) -> str:
    tables = {"runs": report.runs, "summary": report.summary, "comparisons": report.comparisons}
    content = {"metrics": dict(report.metrics), "settings": report.common, "notes": report.notes}
    content |= {
        name: json.loads(table.to_json(orient="records", double_precision=15)) for name, table in tables.items()
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _markdown(report: Report, task: str) -> Iterator[str]:
    cells, above = summary_cells(report, task)
    yield f"{escaped(above)}\n" if above else ""
    yield _pipe_table(
        texts(cells, report, task), [name for name in cells if name not in ("group", *setting_columns(report))]
    )
    yield f"\n{explanation(report, task)}\n"
    table = compared(report, task)
    if len(table):
        yield _pipe_table(*_differences(table, measure_of(report.metrics[task])))
        card = scorecard(table)
        people = card.astype(str).rename(index=AGAINST).rename_axis(f"{who(table)} compared with").reset_index()
        yield "\n" + _pipe_table(people, list(people.columns[1:])) + "\n"
        yield "".join(f"- {escaped(sentence)}\n" for sentence in sentences(table, MOST_ROWS))
        if len(changed := at_best_epoch(report, task)):
            yield "At the best epoch these say something else:\n"
            yield "".join(f"- {escaped(sentence)}\n" for sentence in sentences(changed, MOST_ROWS))


def comparison_cells(table: pd.DataFrame) -> Columns:
    """The columns of the table of the comparisons, as `summary_cells` has those of the groups."""
    columns: Columns = {}
    for row in records(table):
        measure = measure_of(row["metric"])
        needed = needed_text(row)
        cells = {
            "group": (row["label"], ""),
            "minus": (SHORT[row["against"]], ""),
            "seeds": (str(row["seeds"]), row["seeds"]),
            "difference": (difference_text(row, measure), row["difference"]),
            INTERVAL: (interval_text(row, measure, signed=True), row["low"]),
            "p": (p_text(row["p"]), row["p"]),
            "p (Holm)": (p_text(row["p_holm"]), row["p_holm"]),
            "d": (effect_text(row), row["effect"]),
            "says": (row["verdict"], ""),
            "seeds needed": (needed, math.inf if needed.startswith(">") else row["seeds_needed"]),
        }
        for heading, cell in cells.items():
            columns.setdefault(heading, []).append(cell)
    return columns


def _differences(table: pd.DataFrame, measure: Measure) -> tuple[pd.DataFrame, list[str]]:
    """Each comparison as a row of text; and the headings of numbers."""
    cells = comparison_cells(table)
    people = pd.DataFrame({heading: [text for text, _ in column] for heading, column in cells.items()})
    people = people.rename(columns={"difference": f"difference in {measure.name}"})
    return people, [str(heading) for heading in people if heading not in ("group", "minus", "says")]


def _pipe_table(people: pd.DataFrame, numbers: Sequence[str]) -> str:
    align = ["right" if heading in numbers else "left" for heading in people]
    people = people.map(escaped).rename(columns=escaped)
    return people.to_markdown(index=False, disable_numparse=True, colalign=align)


def escaped(text: str) -> str:
    """A text for Markdown, whatever is in it."""
    return text.translate(_MARKDOWN)


_MARKDOWN = str.maketrans(
    {**{character: f"\\{character}" for character in "\\`*[]|$~"}, "&": "&amp;", "<": "&lt;", ">": "&gt;"}
)
