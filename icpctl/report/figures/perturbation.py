"""The paper's Figure 1 anew: how ICP and iterative FGSM move points, and what the probability of their class does.

A small network learns to tell apart points of a few classes in the plane. The same points are then moved step by step:
against the gradient of their loss (ICP) and along it (iterative FGSM), both by ε times the sign of the gradient; and by
ICP with Adam at η = ε.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from icpctl.methods.icp import perturbation as icp
from icpctl.report.figures.style import BLUE, DPI, ORANGE, PURPLE, SKY, VERMILION, styled

EPSILON = 0.002  # in units of the points, as in the paper's Figure 1
STEPS = 100
POINTS = 20  # of each class
CENTRES = ((-0.5, -0.35), (0.5, -0.35), (0.0, 0.5))
DEVIATION = 0.35  # of a class along each axis
SEED = 5
EPOCHS, LEARNING_RATE = 20, 0.01  # full batch; more make the network too sure of itself to show a change

CLASS_COLOURS, CLASS_MARKERS = (SKY, ORANGE, PURPLE), ("o", "s", "^")


class Sign(icp.SGD):
    """u_t = sign(g_t), the update of FGSM (Goodfellow et al., arXiv 1412.6572)."""

    def __call__(self, gradient: Tensor, x: Tensor) -> Tensor:
        return gradient.sign()


@dataclass(frozen=True)
class Method:
    """A way to move the points, and how its probability is drawn."""

    name: str
    label: str
    optimizer: type[icp.SGD]
    direction: str
    colour: str
    line: str


ICP = Method("ICP", "ICP (a)", Sign, "descend", BLUE, "-")
FGSM = Method("FGSM", "iterative FGSM (b)", Sign, "ascend", VERMILION, "--")
ADAM_ICP = Method("Adam-ICP", f"Adam-ICP, η = {EPSILON:g}", icp.Adam, "descend", "black", ":")
METHODS = (ICP, FGSM, ADAM_ICP)


@dataclass(frozen=True)
class Problem:
    """Points of several classes in the plane, and a network that was trained on them."""

    points: Tensor
    """(N, 2) float32."""
    labels: Tensor
    """(N,) int64."""
    network: nn.Module
    """Points (N, 2) to logits (N, classes)."""


def perturbation_figure() -> tuple[Figure, pd.DataFrame]:
    """The figure and the data behind it, as `perturbation_data` has them. The global random state stays as it is."""
    problem = make_problem()
    data = perturbation_data(problem)
    with styled():
        figure = Figure(figsize=(11, 4.5), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.1))
        left, middle, right = figure.subplots(1, 3)
        _draw_paths(left, problem, data, ICP, r"(a) ICP: $x - ε \cdot \mathrm{sign}(g)$")
        _draw_paths(middle, problem, data, FGSM, r"(b) iterative FGSM: $x + ε \cdot \mathrm{sign}(g)$")
        middle.set_ylabel("")
        _draw_probability(right, data)
        figure.suptitle(
            f"Lines: {STEPS} steps of ε = {EPSILON:g} from each marker, g the gradient of the loss. Shaded: the class that the "
            "network predicts.",
            fontsize="medium",
        )
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(CENTRES))
    return figure, data


def make_problem() -> Problem:
    """Slightly overlapping Gaussian classes, and a network trained on them with Adam."""
    from sklearn.datasets import make_blobs

    points, labels = make_blobs(
        n_samples=[POINTS] * len(CENTRES), centers=np.array(CENTRES), cluster_std=DEVIATION, random_state=SEED
    )
    x, y = torch.tensor(points, dtype=torch.float32), torch.tensor(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, len(CENTRES)))
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Problem(x, y, network)


def perturbation_data(problem: Problem) -> pd.DataFrame:
    """Where each point is after each step of each method, and how probable the network takes its class to be there.

    Columns: method; step, 0 … STEPS, where 0 is the point itself; point, its index; label, its class; x1 and x2;
    probability, of that class.
    """
    return pd.concat([_moved(problem, method) for method in METHODS], ignore_index=True)


def _moved(problem: Problem, method: Method) -> pd.DataFrame:
    optimizer = method.optimizer()  # one for all steps, as it may have a state

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(problem.network(z), problem.labels)

    path = [problem.points]
    for _ in range(STEPS):
        path.append(icp.perturb(path[-1], loss, optimizer, steps=1, lr=EPSILON, direction=method.direction))
    places = torch.stack(path)  # (STEPS + 1, N, 2)
    steps, points = np.indices(places.shape[:2])
    labels = np.broadcast_to(problem.labels.numpy(), steps.shape)
    probability = np.take_along_axis(_probabilities(problem.network, places), labels[..., None], axis=-1)
    x1, x2 = places.unbind(-1)
    columns = {"step": steps, "point": points, "label": labels, "x1": x1, "x2": x2, "probability": probability}
    return pd.DataFrame(
        {"method": method.name} | {name: np.asarray(column).ravel() for name, column in columns.items()}
    )


def _probabilities(network: nn.Module, points: Tensor) -> NDArray[np.float32]:
    """(…, classes) for points (…, 2)."""
    with torch.no_grad():
        return np.asarray(network(points).softmax(dim=-1).numpy())


def _draw_paths(axes: Axes, problem: Problem, data: pd.DataFrame, method: Method, title: str) -> None:
    """Decision regions, and the way of every point from its marker to the end of its line."""
    low, high = data[["x1", "x2"]].min(), data[["x1", "x2"]].max()  # of all methods, so that the panels are alike
    half = 0.53 * float((high - low).max())
    horizontal, vertical = (np.linspace(middle - half, middle + half, 201) for middle in (low + high) / 2)
    axes.set(
        title=title, xlabel="$x_1$", ylabel="$x_2$", xlim=horizontal[[0, -1]], ylim=vertical[[0, -1]], aspect="equal"
    )
    grid = np.stack(np.meshgrid(horizontal, vertical), axis=-1)
    regions = _probabilities(problem.network, torch.from_numpy(grid).float())
    for label, colour in enumerate(CLASS_COLOURS):
        lead = regions[..., label] - np.delete(regions, label, axis=2).max(axis=2)
        axes.contourf(horizontal, vertical, lead, levels=[0, 1], colors=[colour], alpha=0.18)
    moved = data[data["method"] == method.name]
    ways = moved.sort_values(["point", "step"])[["x1", "x2"]].to_numpy().reshape(-1, STEPS + 1, 2)
    axes.add_collection(LineCollection(list(ways), colors=method.colour, linewidths=1.2))
    for label, (colour, marker) in enumerate(zip(CLASS_COLOURS, CLASS_MARKERS, strict=True)):
        x1, x2 = problem.points[problem.labels == label].T
        axes.scatter(
            x1,
            x2,
            s=22,
            c=colour,
            marker=marker,
            edgecolors="black",
            linewidths=0.6,
            zorder=3,
            label=f"class {label + 1}",
        )


def _draw_probability(axes: Axes, data: pd.DataFrame) -> None:
    for method in METHODS:
        by_step = data[data["method"] == method.name].groupby("step")["probability"]
        mean = by_step.mean()
        axes.plot(mean.index, mean, color=method.colour, linestyle=method.line, linewidth=2, label=method.label)
        if method is not ADAM_ICP:
            axes.fill_between(
                mean.index, by_step.quantile(0.25), by_step.quantile(0.75), color=method.colour, alpha=0.2, linewidth=0
            )
    axes.set(
        title="(c) probability of the true class",
        xlabel="step",
        ylabel="mean; band: middle half of the points",
        xlim=(0, STEPS),
        ylim=(0, 1),
        box_aspect=1,
    )
    axes.legend()
