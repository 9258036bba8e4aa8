"""The sampling of the test images: intervals that cover it beside the seeds, where runs kept their predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from icpctl.report.groups import Grouping, twin_places
from icpctl.runs.folder import PREDICTIONS, RunRecord
from icpctl.runs.measures import images_text, interval_half, measure_of
from icpctl.runs.table import records as rows_of
from icpctl.statistics import ALPHA

Floats = np.ndarray[Any, np.dtype[np.float64]]
WIDENED = ("low_images", "high_images")
"""The ends of the interval that covers seeds and test images."""


class Predictions:
    """What the runs of a report kept of each test image; each file is read once."""

    def __init__(self, records: Mapping[str, RunRecord]) -> None:
        self.records = records
        self._read: dict[str, pd.DataFrame | None] = {}

    def of(self, run_id: str, metric: str) -> Floats | None:
        """(images,): the metric of each test image at the last epoch; None where it was not kept."""
        if run_id not in self._read:
            self._read[run_id] = self._table(run_id)
        table = self._read[run_id]
        if table is None or metric not in table or metric in ("image", "label", "predicted"):
            return None
        return np.asarray(table[metric], np.float64)

    def _table(self, run_id: str) -> pd.DataFrame | None:
        file = self.records[run_id].path / PREDICTIONS if run_id in self.records else None
        if file is None or not file.is_file():
            return None
        try:
            return pd.read_csv(file)
        except (OSError, ValueError):  # damaged: as if it were not there
            return None

    def error(self, pairs: Iterable[tuple[str, str]], metric: str) -> float:
        """The standard error of a mean difference that comes from which images the test split has; nan if it is not known.

        It is that of the bootstrap over images, with the same images for all runs: the standard deviation over the images of
        their mean differences over the seeds, over the root of their number.

        Args:
            pairs: the runs of each seed, by their ids.
            metric: one that is a mean over the images.
        """
        differences: list[Floats] = []
        for ours, theirs in pairs:
            one, other = self.of(ours, metric), self.of(theirs, metric)
            if one is None or other is None or len(one) != len(other):
                return math.nan
            differences.append(one - other)
        if not differences or len({len(each) for each in differences}) > 1:
            return math.nan
        of_image = np.mean(differences, axis=0)
        return float(of_image.std() / math.sqrt(len(of_image)))


def widened(low: float, high: float, error: float) -> tuple[float, float]:
    """An interval over the seeds with the standard error of the test images added: the two are independent."""
    middle, half = (low + high) / 2, (high - low) / 2
    half = math.hypot(half, NormalDist().inv_cdf(1 - ALPHA / 2) * error)
    return middle - half, middle + half


def with_images(
    comparisons: pd.DataFrame, runs: pd.DataFrame, grouping: Grouping, metrics: Iterable[str], predictions: Predictions
) -> pd.DataFrame:
    """The comparisons with the columns `WIDENED`, missing where a run of a pair kept no predictions.

    Args:
        comparisons: as `icpctl.report.comparison.comparison_table` makes them.
        runs: those that it is made of.
        grouping: of these runs.
        metrics: those that the report is about.
        predictions: of the runs.
    """
    comparisons = comparisons.assign(**dict.fromkeys(WIDENED, math.nan))
    asked = comparisons["metric"].isin(list(metrics)) & comparisons["low"].notna()
    kept = {run_id: (record.path / PREDICTIONS).is_file() for run_id, record in predictions.records.items()}
    if not any(kept.values()):
        return comparisons
    row_of = runs["group_id"].map(grouping.member)
    ids = runs["run_id"].to_numpy()
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for against in grouping.kinds:
        places = twin_places(runs, grouping, against)
        for row, ours, place in zip(row_of, ids, places, strict=True):
            if place >= 0:
                pairs.setdefault((row, against), []).append((ours, ids[place]))
    found: dict[Any, tuple[float, float, str]] = {}
    for index, cells in zip(comparisons.index[asked], rows_of(comparisons[asked]), strict=True):
        error = predictions.error(pairs.get((cells["group_id"], cells["against"]), []), cells["metric"])
        if math.isnan(error):
            continue
        low, high = widened(cells["low"], cells["high"], error)
        said = images_text({"low_images": low, "high_images": high}, measure_of(cells["metric"]), interval_half(cells))
        found[index] = (low, high, f"{cells['sentence']} Its interval is {said.strip(' ()')}.")
    columns = pd.DataFrame.from_dict(found, orient="index", columns=[*WIDENED, "sentence"])
    return comparisons.assign(**{name: columns[name].reindex(comparisons.index) for name in WIDENED}).assign(
        sentence=columns["sentence"].reindex(comparisons.index).fillna(comparisons["sentence"])
    )
