"""A report of two sides as text: in the terminal, as Markdown and as LaTeX; and the cells of its table, which the page has too."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from icpctl.errors import count, first_names
from icpctl.report import Report
from icpctl.report.cells import (
    INTERVAL,
    MOST_ROWS,
    Columns,
    compared,
    difference_text,
    effect_text,
    explanation,
    interval_text,
    mean_text,
    needed_text,
    sentences,
    summary_cells,
    texts,
)
from icpctl.report.latex import difference_columns, latex_table, tests_text
from icpctl.report.markdown import escaped, pipe_table
from icpctl.report.terminal import GAP, SENTENCES, rich_table
from icpctl.runs.measures import MARK, feature_letters, measure_of, p_text, shown_metrics
from icpctl.runs.references import COUNTERPART
from icpctl.runs.table import records

DIFFERENCE = "A − B"
WORDS = ("group of A", "group of B", "metric", "verdict")
"""The columns of text."""
METRIC = 16
"""Characters of the name of a metric where the room is short."""


def shown(report: Report, task: str) -> pd.DataFrame:
    """The comparisons of a task in the metrics that its tables show: pair by pair, the metric that the report is about first."""
    table = report.comparisons[report.comparisons["task"] == task]
    metrics = shown_metrics(task, table["metric"], report.metrics[task])
    table = table[table["metric"].isin(metrics)]
    order = {metric: place for place, metric in enumerate(metrics)}
    place = table.groupby(["group_id", "counterpart_id"], sort=False).ngroup()
    return table.assign(place=place, turn=table["metric"].map(order)).sort_values(["place", "turn"], kind="stable")


def pair_cells(report: Report, task: str) -> Columns:
    """The columns of the table of two sides: means over the seeds of each, and the differences paired by seed."""
    columns: Columns = {}
    letters = feature_letters(report.summary["metric"])
    for row in records(shown(report, task)):
        measure = measure_of(row["metric"], letters)
        needed = needed_text(row)
        ours, theirs = (
            {"mean": row[f"mean_{side}"], "std": row[f"std_{side}"], "lacking": row["lacking"]} for side in "ab"
        )
        cells = {
            "group of A": (_group(report, row["label"], "A"), ""),
            "group of B": (_group(report, row[COUNTERPART], "B"), ""),
            "metric": (measure.heading, ""),
            "seeds": (str(row["seeds"]), row["seeds"]),
            "A": (mean_text(ours, measure), ours["mean"]),
            "B": (mean_text(theirs, measure), theirs["mean"]),
            DIFFERENCE: (difference_text(row, measure), row["difference"]),
            INTERVAL: (interval_text(row, measure, signed=True), row["low"]),
            "p (Holm)": (p_text(row["p_holm"]), row["p_holm"]),
            "d": (effect_text(row), row["effect"]),
            "verdict": (row["verdict"], ""),
            "seeds needed": (needed, float("inf") if needed.startswith(">") else row["seeds_needed"]),
        }
        for heading, cell in cells.items():
            columns.setdefault(heading, []).append(cell)
    if report.sides and report.sides.folders and columns:  # the groups have the same name
        del columns["group of B"]
        columns = {"group" if name == "group of A" else name: column for name, column in columns.items()}
    return columns


def _group(report: Report, label: str, side: str) -> str:
    """The label of a group without its side, which the column says."""
    return label.removesuffix(f" in {side}").removesuffix(f" ({side})")


def _explained(report: Report, task: str) -> str:
    return (
        f"{explanation(report, task, interval=False)} A − B: mean of the differences by seed, with its 95 % interval by t. p: two-sided "
        "paired t test, corrected for the number of comparisons of the metric (Holm); the intervals are not. “better”: A is."
    )


def pair_terminal(report: Report, width: int) -> Iterator[RenderableType]:
    """What is printed, `width` columns wide: the two sides, their differences, and what these say."""
    assert report.sides is not None
    for side, name in zip("AB", report.sides.names, strict=True):
        yield Text(f"{side}: {name}", "bold")
    yield from (Text(sentence) for sentence in report.sides.about)
    for task in report.metrics:
        table = shown(report, task)
        if len(table):
            yield Text("\nMeans of A and of B, and A − B paired by seed", "bold")
            yield from _rich_pairs(report, task, width)
            said = compared(report, task)
            yield Text(f"\nVerdicts in {measure_of(report.metrics[task]).name}", "bold")
            yield from (Text(f"• {sentence}") for sentence in sentences(said, SENTENCES))
        else:
            yield Text("\nNothing of A can be paired with anything of B; the notes say why.", "bold")
        if alone := _alone(report, task):
            yield Text("\nGroups without a counterpart", "bold")
            yield rich_table(alone, task, width)
        yield Text(_explained(report, task), "dim")
        yield Text("")
    yield Text(report.common)


def _alone(report: Report, task: str) -> Report | None:
    """The report of the groups of the task that are in no comparison; None where each is in one."""
    grouping = report.grouping
    compared = {*report.comparisons["group_id"], *report.comparisons["counterpart_id"]}
    table = grouping.table[~grouping.table.index.isin(list(compared))]
    return replace(report, grouping=replace(grouping, table=table)) if (table["task"] == task).any() else None


def _rich_pairs(report: Report, task: str, width: int) -> Iterator[RenderableType]:
    """The names of the groups of each pair, and below them a line for each metric; broken and shortened where the room is short."""
    cells = pair_cells(report, task)
    people = pd.DataFrame({heading: [text for text, _ in column] for heading, column in cells.items()})
    names = [name for name in people if str(name).startswith("group")]
    title = people[names].agg(" − ".join, axis="columns")
    equal = (people["verdict"] == "equal").groupby(title).transform("all")
    same = title[equal].unique()
    people, title = people.drop(columns=[*names, "seeds", "d", "seeds needed"])[~equal], title[~equal]

    def lacks_room() -> bool:
        texts = [*people.itertuples(index=False), people.columns]
        widths = [
            max(len(line) for cell in column for line in str(cell).split("\n")) for column in zip(*texts, strict=True)
        ]
        return 2 + sum(widths) + GAP * (len(widths) - 1) > width

    if lacks_room():
        people["metric"] = people["metric"].map(lambda name: "\n".join(textwrap.wrap(name, METRIC)))
    if lacks_room():
        people = people.map(lambda text: text.replace(" ± ", "\n± ").replace(" to ", "\nto "))
    left_out = []
    for heading in ("p (Holm)", INTERVAL):
        if lacks_room():
            left_out.append(heading)
            people = people.drop(columns=heading)
    rows = people.index[:MOST_ROWS]
    widths = {
        str(name): max(len(line) for cell in (*column, str(name)) for line in cell.split("\n"))
        for name, column in people.items()
    }
    for number, (_, of_pair) in enumerate(people.loc[rows].groupby(title.loc[rows], sort=False)):
        yield Text(title[of_pair.index[0]])
        grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=number == 0, header_style="")
        for name, across in widths.items():
            grid.add_column(name, width=across, justify="left" if name in WORDS else "right", no_wrap=True)
        for row in of_pair.to_dict("records"):
            style = {"better": "green", "worse": "red"}.get(row["verdict"], "")
            grid.add_row(*(Text(str(cell), style) for cell in row.values()))
        yield Padding(grid, (0, 0, 0, 2))
    if len(same):
        yield Text(f"Equal in all of these metrics and all seeds: {count(len(same), 'pair')}, {first_names(same)}.")
    if left_out:
        yield Text(f"No room for {', '.join(left_out)}: see comparisons.csv.")
    if more := len(people) - len(rows):
        yield Text(f"comparisons.csv and report.html have {count(more, 'more row')}; --where chooses.")


def pair_markdown(report: Report, task: str) -> Iterator[str]:
    assert report.sides is not None
    for side, name in zip("AB", report.sides.names, strict=True):
        yield f"- {side}: {escaped(name)}"
    yield "".join(f"- {escaped(sentence)}\n" for sentence in report.sides.about)
    cells = pair_cells(report, task)
    if cells:
        people = pd.DataFrame({heading: [text for text, _ in column] for heading, column in cells.items()})
        yield pipe_table(people, [name for name in cells if name not in ("group", *WORDS)])
    else:
        yield "Nothing of A can be paired with anything of B; the notes say why."
    if alone := _alone(report, task):
        groups, above = summary_cells(alone, task)
        yield f"\nGroups without a counterpart{f': {escaped(above)}' if above else ''}\n"
        yield pipe_table(texts(groups, alone, task), [name for name in groups if name != "group"])
    yield f"\n{escaped(_explained(report, task))}\n"
    yield "".join(f"- {escaped(sentence)}\n" for sentence in sentences(compared(report, task), MOST_ROWS))


def pair_latex(report: Report, task: str) -> str:
    """A table of the pairs: the means of both sides, and the differences."""
    assert report.sides is not None
    cells = pair_cells(report, task)
    sides = "; ".join(f"{side}: {name}" for side, name in zip("AB", report.sides.names, strict=True))
    if not cells:
        return f"% Nothing is paired. {' '.join(sides.split())}\n"
    table = shown(report, task)
    marked = f" {MARK}: of only some of the seeds." if (table["lacking"] > 0).any() else ""
    caption = (
        f"{sides}. Test split: mean ± standard deviation over the seeds of each side, and the mean difference A − B, paired by seed."
        f"{tests_text(int(table['comparisons'].max()))}{marked}"
    )
    headings = [heading for heading in cells if heading not in ("seeds", "d", "seeds needed")]
    return latex_table(difference_columns(cells, headings), caption, f"{task}-a-and-b", ("group", *WORDS))
