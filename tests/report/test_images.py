"""Intervals that cover the sampling of the test images: against a bootstrap, and over simulated test sets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reports import write_run

from icpctl.ablate import command, deciding
from icpctl.config import resolve
from icpctl.report import build
from icpctl.report.images import Predictions, widened
from icpctl.runs.folder import PREDICTIONS
from icpctl.training.engine import train

IMAGES, SEEDS = 400, 5


def write_pair(output: Path, rng: np.random.Generator, seeds: int = SEEDS, hard: float = 1.0) -> list[np.ndarray]:
    """Runs of ICP and baselines whose predictions share which images are hard; the differences image by image."""
    hardness = hard * rng.standard_normal(IMAGES)
    gains = 0.5 * rng.standard_normal(IMAGES)
    differences = []
    for seed in range(seeds):
        right = []
        for method, gain in (("icp", gains), ("plain", 0.0)):
            config = resolve({"dataset": "digits", "epochs": 1, "warmup_epochs": 0, "seed": seed, "method": method})
            right.append((hardness + gain + rng.standard_normal(IMAGES) > 0).astype(int))
            folder = write_run(output, config, [float(right[-1].mean())])
            folder.write_predictions({"accuracy": right[-1].tolist()})
        differences.append(right[0] - right[1])
    return differences


def test_the_error_of_the_images_is_that_of_a_bootstrap(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    differences = np.array(write_pair(tmp_path, rng))
    report = build(tmp_path)
    pairs = [tuple(f.name for f in sorted(tmp_path.iterdir()) if f"-s{seed}-" in f.name) for seed in range(SEEDS)]
    error = Predictions(report.records).error(pairs, "accuracy")  # type: ignore[arg-type]
    drawn = rng.integers(0, IMAGES, (20_000, IMAGES))
    bootstrap = differences.mean(axis=0)[drawn].mean(axis=1).std()
    assert error == pytest.approx(bootstrap, rel=0.03)

    row = report.comparisons.query("metric == 'accuracy' and against == 'baseline'").iloc[0]
    low, high = widened(row["low"], row["high"], error)
    assert (row["low_images"], row["high_images"]) == (low, high)
    assert (high - low) / 2 == pytest.approx(math.hypot((row["high"] - row["low"]) / 2, 1.959964 * error))
    assert "with the sampling of the test images." in row["sentence"]
    assert report.comparisons.query("metric == 'f1_macro'")["low_images"].isna().all()


def test_it_covers_the_difference_on_all_images_that_there_could_be_and_that_over_seeds_does_not(
    tmp_path: Path,
) -> None:
    """Of simulated test sets, with seeds that agree: which images are there is most of what is not known."""
    rng = np.random.default_rng(1)
    covered = {"seeds": 0, "images": 0}
    studies, images, seeds, truth = 2000, 300, 5, 0.1
    for _ in range(studies):
        of_image = truth + rng.standard_normal(images)
        differences = of_image + 0.2 * rng.standard_normal((seeds, images))
        of_seed = differences.mean(axis=1)
        half = 2.776 * of_seed.std(ddof=1) / math.sqrt(seeds)
        low, high = of_seed.mean() - half, of_seed.mean() + half
        covered["seeds"] += low <= truth <= high
        low, high = widened(low, high, float(differences.mean(axis=0).std() / math.sqrt(images)))
        covered["images"] += low <= truth <= high
    assert covered["seeds"] / studies < 0.5
    assert covered["images"] / studies > 0.93


def test_without_predictions_of_all_runs_or_with_a_damaged_file_there_is_none(tmp_path: Path) -> None:
    write_pair(tmp_path, np.random.default_rng(2))
    file = next(tmp_path.glob(f"*/{PREDICTIONS}"))
    for content in (b"image,accuracy\n0,1\n", b"\xff\x00,,\n1", b""):
        file.write_bytes(content)
        report = build(tmp_path)
        assert report.comparisons["low_images"].isna().all()
        assert not report.comparisons["sentence"].str.contains("test images").any()


def test_a_claim_has_the_interval_too(tmp_path: Path) -> None:
    settings = {"dataset": "digits", "epochs": 1, "warmup_epochs": 0}
    plan = {"claims": ["method=icp better than baseline in accuracy"]}
    deciding.plan(command.define(settings, seeds="5", plan=plan), tmp_path)[0].keep(tmp_path)
    write_pair(tmp_path, np.random.default_rng(3))
    report = build(tmp_path)
    (row,) = report.claims.table.to_dict("records")
    planned = report.comparisons.query("metric == 'accuracy' and against == 'baseline'").iloc[0]
    assert planned["sentence"] == row["sentence"]
    assert planned["low_images"] == row["low_images"]
    assert row["low_images"] < row["low"] < row["high"] < row["high_images"]
    assert "with the sampling of the test images)" in row["sentence"]


@pytest.mark.parametrize("model", ["resnet20", "vae"])
def test_what_is_kept_of_each_image_has_the_mean_that_metrics_csv_has(model: str, tmp_path: Path) -> None:
    config = resolve(
        {
            "model": model,
            "dataset": "digits",
            "method": "plain",
            "epochs": 1,
            "train_size": 100,
            "keep_predictions": True,
        }
    )
    run = train(config, tmp_path)
    table = pd.read_csv(run.path / PREDICTIONS)
    metrics = run.metrics[(run.metrics["split"] == "test") & (run.metrics["epoch"] == 0)].set_index("metric")["value"]
    shared = [str(name) for name in table if name in metrics.index]
    assert len(table) == 360
    assert {"loss", config.selection} <= set(shared)
    for name in shared:
        assert table[name].mean() == pytest.approx(metrics[name], rel=1e-5)
    assert config.altered(keep_predictions=False).run_id == config.run_id
