"""Made-up runs for the tests of the report."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from icpctl.ablate.study import Study
from icpctl.config import RunConfig, resolve
from icpctl.config.grid import parse_grid
from icpctl.report import Report
from icpctl.report.terminal import terminal
from icpctl.runs.folder import RunFolder

ODD = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'\"><svg onload=alert(1)>",
    "</title></style></script><b>bold</b>",
    "&amp; &lt;i&gt;",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(1)",
    "mice 🐭 عربي שלום 中文",
    r"\input{/etc/passwd} $x_1$ 50% a~b^2 #1 {c} a\\b",
    "a|b `c` *d* _e_ [f](javascript:alert)",
)
"""Names that are more than letters to HTML, a template, JavaScript, LaTeX or Markdown."""


def write_run(
    output: Path,
    config: RunConfig,
    accuracy: list[float],
    val: list[float] | None = None,
    state: str = "finished",
    fingerprint: str = "1a2b3c4d5e6f7a8b",
    **status: Any,
) -> RunFolder:
    """A run folder whose test accuracy (SSIM of a VAE), epoch by epoch, is `accuracy`; its macro F1 is a tenth below."""
    folder = RunFolder(output, config)
    folder.create()
    folder.write_config(config, {"data": {"fingerprint": fingerprint}}, {"started": "2026-01-02T03:04:05+00:00"})
    for epoch, value in enumerate(accuracy):
        train = {"loss": 1.0, "icp_loss_before": 2.0, "seconds": 1.5, "images_per_second": 100.0 + epoch}
        metrics: dict[str, Mapping[str, float]] = {"train": train}
        other = {"psnr": 30 * value} if config.task == "generation" else {"f1_macro": value - 0.1}
        metrics["test"] = {config.selection: value, **other, "loss": 1 - value}
        if val:
            metrics["val"] = {config.selection: val[epoch], "loss": 0.0}
        folder.append_metrics(epoch, metrics)
    folder.write_status(state, **status)
    return folder


def configs(
    grids: list[str], seeds: int = 1, controls: bool = False, compute_matched: bool = False, **values: object
) -> list[RunConfig]:
    """The runs of a study of two epochs."""
    grid = parse_grid(grids)
    shared = {name: value for name, value in {"epochs": 2, **values}.items() if name not in grid}
    study = Study(shared, grid, (), tuple(range(seeds)), controls, compute_matched)
    return [run.config for run in study.runs()]


def write_everything(output: Path) -> None:
    """A results folder that has what a report can be about: claims and others, against all references; two tasks; folders
    of images with odd names; runs that failed, that go on, that are damaged.
    """
    study = configs(
        ["steps=1,3", "icp_lr=0.01,0.1"], 5, controls=True, compute_matched=True, optimizer="adam", dataset="digits"
    )
    gains = {"descend": 0.5, "ascend": -1.0, "random": 0.0}
    for number, config in enumerate(study):
        gain = 0.0 if config.optimizer == "none" else gains[config.direction] * config.icp_lr
        last = 0.6 + config.seed / 100 + gain + number % 7 / 500
        write_run(output, config, [0.1] * (config.epochs - 1) + [last], [0.2] * config.epochs)
    for number, name in enumerate(ODD):
        for config in configs(["steps=1"], 2, dataset=f"folder:/data/{name}"):
            gain = 0.0 if config.optimizer == "none" else (config.seed + 1) / 100
            write_run(output, config, [0.1, 0.3 + number / 50 + gain])
        config = resolve({"dataset": "digits", "steps": 4, "epochs": 2, "seed": number})
        state = ("failed", "running", "interrupted")[number % 3]
        folder = write_run(output, config, [0.1], state=state, error=f"ValueError: {name}", notes=[f"Note: {name}"])
        with folder.metrics_file.open("a", encoding="utf-8") as file:
            file.write(f"{folder.run_id},1,test,{name.replace(',', '')},0.5\n{name},one,test,accuracy,0.5\n")
    for seed in range(3):
        for optimizer, kind, gain in (("none", "", 0.0), ("adam", "", 0.01), ("sgd", "_by_resnet20-x", 0.02)):
            config = resolve({"model": "vae", "dataset": "digits", "epochs": 2, "optimizer": optimizer, "seed": seed})
            folder = write_run(output, config, [0.5, 0.6 + gain * (1 + seed / 10) + seed / 100])
            of = ("reconstruction", "prior")
            distances = {f"{name}_{what}{kind}": 7.0 + seed for name in ("fid", "kid") for what in of}
            folder.append_metrics(1, {"test": distances})
    (output / "<i>no run").mkdir()
    (output / "torn & broken").mkdir()
    (output / "torn & broken" / "config.json").write_text("{<script>alert(1)</script>")


def printed(report: Report, width: int = 80) -> str:
    """What the terminal shows."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    for part in terminal(report, width):
        console.print(part, highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
