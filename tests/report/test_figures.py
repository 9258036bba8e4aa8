"""The figures show what the runs and the perturbation do, and are drawn the same again."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from PIL import Image

import icpctl
from icpctl import data, report
from icpctl.config import RunConfig
from icpctl.models.network import load_trained
from icpctl.report import figures
from icpctl.report.figures import perturbation
from icpctl.report.figures.perturbation import EPSILON, STEPS, perturbation_figure
from icpctl.report.figures.reconstruction import (
    MOST_ROWS,
    draw,
    reconstruction_figure,
    reconstruction_figures,
    reconstructions,
    row_labels,
)
from icpctl.report.figures.style import KINDS, encode
from icpctl.runs.folder import RunFolder, RunRecord, read_runs

OPTIMIZERS = ["none", "sgd", "adam", "ademamix"]
METHODS = ["baseline", "SGD-ICP", "Adam-ICP", "AdEMAMix-ICP"]
INDICES = [0, 120, 239, 359]  # of the 360 test images of digits


def vae(optimizer: str = "none", **settings: Any) -> RunConfig:
    common = {"dataset": "digits", "epochs": 3, "warmup_epochs": 1, "train_size": 60, "lr": 0.01, "device": "cpu"}
    return RunConfig(model="vae", optimizer=optimizer, **common | settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the four methods."""
    results = tmp_path_factory.mktemp("results")
    for optimizer in OPTIMIZERS:
        icpctl.train(vae(optimizer), results)
    return results


@pytest.fixture
def results(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "results")


@pytest.fixture(scope="module")
def moved() -> pd.DataFrame:
    return perturbation_figure()[1]


@pytest.fixture(scope="module")
def figure(trained: Path) -> Figure:
    drawn, notes = only_figure(trained)
    assert not notes
    return drawn


def only_figure(folder: Path) -> tuple[Figure, list[str]]:
    drawn, notes = reconstruction_figures(read_runs(folder)[0])
    (figure,) = drawn.values()
    return figure, notes


def shown(figure: Figure) -> np.ndarray[Any, Any]:
    """The pixels on show, (blocks, rows, 6, S, S, 3)."""
    pixels = np.stack([np.asarray(axes.images[0].get_array()) for axes in figure.axes])
    return pixels.reshape(len(INDICES), -1, 6, *pixels.shape[1:])


def words(figure: Figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for text in figure.texts]


def folder_of(results: Path, optimizer: str) -> Path:
    return results / vae(optimizer).run_id


# ── Figure 1


def test_icp_raises_the_probability_of_the_class_and_fgsm_lowers_it(moved: pd.DataFrame) -> None:
    means = moved.groupby(["method", "step"])["probability"].mean().unstack("method")
    assert len(means) == STEPS + 1
    assert np.ptp(means.loc[0]) == 0  # the same points
    change = means.diff().iloc[1:]
    assert (change["ICP"] > 0).mean() > 0.95
    assert (change["Adam-ICP"] > 0).mean() > 0.95
    assert (change["FGSM"] < 0).mean() > 0.95
    assert means["ICP"].iloc[-1] > means["ICP"].iloc[0] + 0.05
    assert means["FGSM"].iloc[-1] < means["FGSM"].iloc[0] - 0.1


@pytest.mark.parametrize("method", ["ICP", "FGSM"])
def test_every_step_is_epsilon_along_each_coordinate(moved: pd.DataFrame, method: str) -> None:
    steps = (
        moved[moved["method"] == method].sort_values(["point", "step"]).groupby("point")[["x1", "x2"]].diff().dropna()
    ).to_numpy()
    assert np.isclose(np.abs(steps), EPSILON, atol=1e-6).mean() > 0.99
    assert (np.isclose(np.abs(steps), EPSILON, atol=1e-6) | (steps == 0)).all()  # 0 where the gradient is


def test_the_first_step_goes_against_the_gradient_and_fgsm_along_it(moved: pd.DataFrame) -> None:
    problem = perturbation.make_problem()
    x = problem.points.clone().requires_grad_()
    torch.nn.functional.cross_entropy(problem.network(x), problem.labels).backward()
    assert x.grad is not None
    for method, sign in (("ICP", -1), ("FGSM", 1)):
        place = moved[(moved["method"] == method) & (moved["step"] == 1)].sort_values("point")[["x1", "x2"]].to_numpy()
        np.testing.assert_allclose(place, (problem.points + sign * EPSILON * x.grad.sign()).numpy(), atol=1e-6)


def test_the_probability_is_that_of_the_true_class_at_the_point(moved: pd.DataFrame) -> None:
    problem = perturbation.make_problem()
    row = moved.iloc[len(moved) // 2 + 17]
    logits = problem.network(torch.tensor([[row["x1"], row["x2"]]], dtype=torch.float32)).detach()
    assert row["label"] == problem.labels[int(row["point"])]
    assert row["probability"] == pytest.approx(float(logits.softmax(1)[0, int(row["label"])]), abs=1e-6)
    assert len(moved) == 3 * (STEPS + 1) * len(problem.labels)


def test_the_same_again_and_no_trace_in_the_global_state(moved: pd.DataFrame) -> None:
    torch.manual_seed(123)
    np.random.seed(123)
    before: Any = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    with rc_context({"font.size": 7, "svg.hashsalt": "the user's"}):
        pd.testing.assert_frame_equal(perturbation_figure()[1], moved)
        assert (rcParams["font.size"], rcParams["svg.hashsalt"]) == (7, "the user's")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]


def test_the_lines_are_the_data(moved: pd.DataFrame) -> None:
    figure, _ = perturbation_figure()
    left, middle, right = figure.axes
    for axes, method in ((left, "ICP"), (middle, "FGSM")):
        (lines,) = (each for each in axes.collections if hasattr(each, "get_segments"))
        of_point = moved[(moved["method"] == method) & (moved["point"] == 7)].sort_values("step")
        np.testing.assert_array_equal(lines.get_segments()[7], of_point[["x1", "x2"]])
    for line, method in zip(right.lines, ("ICP", "FGSM", "Adam-ICP"), strict=True):
        means = moved[moved["method"] == method].groupby("step")["probability"].mean()
        np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=float), means)
    text = " ".join([figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)])
    assert "100 steps of ε = 0.002" in text
    assert "ICP" in text
    assert "FGSM" in text


# ── Figure 3


def test_the_pixels_are_those_of_the_trained_networks(trained: Path, figure: Figure) -> None:
    pixels = shown(figure)
    assert pixels.shape == (4, 4, 6, 16, 16, 3)
    assert len({row.tobytes() for row in pixels.swapaxes(0, 1)}) == 4
    test = data.load("digits", image_size=16).test.images[INDICES]
    for row, optimizer in enumerate(OPTIMIZERS):
        network = load_trained(folder_of(trained, optimizer), device="cpu").network
        model: Any = network.model.eval()
        with torch.no_grad():
            mean, log_variance = model.encode(network.normalise(torch.tensor(test)))
            latents = [mean]
            for k in (1, 2, 3, 4):
                noise = torch.randn(model.latent_dim, generator=torch.Generator().manual_seed(k))
                latents.append(mean + noise * torch.exp(0.5 * log_variance))
            expected = [network.pixels(model.decode(z)).permute(0, 2, 3, 1) for z in latents]
        np.testing.assert_array_equal(pixels[:, row, 0], test.transpose(0, 2, 3, 1))
        for column, images in enumerate(expected, start=1):
            difference = pixels[:, row, column].astype(int) - images.numpy()
            assert np.abs(difference).max() <= 1  # exp(v / 2) is rounded one way or the other
        assert len({images.numpy().tobytes() for images in expected}) == 5


def test_the_noise_is_as_wide_as_the_posterior(trained: Path) -> None:
    network = load_trained(folder_of(trained, "none"), device="cpu").network
    images = torch.tensor(data.load("digits", image_size=16).test.images[INDICES])
    model: Any = network.model
    decoded: list[torch.Tensor] = []
    decode = model.decode

    def decode_and_keep(z: torch.Tensor) -> torch.Tensor:
        decoded.append(z)
        return decode(z)  # type: ignore[no-any-return]

    model.decode = decode_and_keep
    with torch.no_grad():
        model.to_posterior.weight[model.latent_dim :] = 0
        model.to_posterior.bias[model.latent_dim :] = 2 * np.log(0.25)
    reconstructions(network, images)
    noise = torch.stack(
        [torch.randn(model.latent_dim, generator=torch.Generator().manual_seed(k)) for k in (1, 2, 3, 4)]
    )
    difference = torch.stack(decoded[1:], dim=1) - decoded[0][:, None]
    torch.testing.assert_close(difference, 0.25 * noise.expand_as(difference), rtol=0, atol=1e-5)


def test_words_say_what_is_what(figure: Figure) -> None:
    said = words(figure)
    assert "digits, 16 × 16 pixels, seed 0, 3 epochs, train_size 60, lr 0.01" in said
    assert [word for word in said if word in METHODS] == METHODS * 2  # the blocks stand two by two
    assert [word for word in said if word.startswith("test image")] == [f"test image {index}" for index in INDICES]
    for column in ("input", "z = μ", "μ + σ·ε₁", "μ + σ·ε₄"):
        assert said.count(column) == 4


def test_no_words_overlap_or_leave_the_page(figure: Figure) -> None:
    check_words(figure)
    settings = [f"AdEMAMix-ICP, ascend, steps {n}, icp_lr 0.00{n}, layers encoder.0+decoder.{n}" for n in range(3)]
    check_words(draw("photos, " * 60, INDICES, [(label, shown(figure)[:, 0]) for label in settings]))


def check_words(figure: Figure) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a sign that the font lacks
        figure.draw_without_rendering()
    page = figure.bbox
    boxes = [text.get_window_extent() for text in figure.texts] + [axes.get_window_extent() for axes in figure.axes]
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1 for box in boxes)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number]), figure.texts[
            min(number, len(figure.texts) - 1)
        ]


@pytest.mark.parametrize("side", [16, 64, 128])
def test_every_pixel_is_the_same_number_of_dots(side: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 6, side, side, 3), dtype=np.uint8)
    figure = draw("noise", [0, 1], [("baseline", pixels), ("Adam-ICP", pixels)])
    (tmp_path / "noise.png").write_bytes(encode(figure, "png"))
    page = np.asarray(Image.open(tmp_path / "noise.png").convert("RGB"))
    for axes, image in zip(figure.axes, pixels[[0, 0, 1, 1]].reshape(-1, side, side, 3), strict=True):
        box = axes.get_window_extent()
        left, top, size = round(box.x0), round(len(page) - box.y1), round(box.width)
        assert size % side == 0
        dots = size // side
        printed = page[top : top + size, left : left + size]
        np.testing.assert_array_equal(printed, image.repeat(dots, 0).repeat(dots, 1))


def test_rows_are_named_by_what_tells_them_apart() -> None:
    configs = [
        vae("ademamix", steps=3, alpha=8.0),
        vae("ademamix", steps=5),
        vae("ademamix", steps=5, direction="ascend"),
        vae("adam", steps=3),
        vae("sgd", steps=5),
        vae(),
    ]
    assert list(row_labels(configs).values()) == [
        "baseline",
        "SGD-ICP, steps 5",
        "Adam-ICP, steps 3",
        "AdEMAMix-ICP, steps 3, alpha 8",
        "AdEMAMix-ICP, steps 5, alpha 5",
        "AdEMAMix-ICP, ascend, steps 5, alpha 5",
    ]
    assert list(row_labels([vae("adam"), vae("sgd")]).values()) == ["SGD-ICP", "Adam-ICP"]
    alone = vae("adam").altered(method="schedule")  # with no steps of its own
    assert list(row_labels([vae(), vae("adam"), alone]).values()) == ["baseline", "Adam-ICP", "schedule alone"]
    assert [*row_labels([vae("sgd", steps=3), vae("sgd", steps=5), alone]).values()][1] == "SGD-ICP, steps 5"
    layers = [vae("sgd", layers="encoder.0"), vae("sgd", teacher_statistics=False)]
    first, second = sorted(row_labels(layers).values())
    assert first == "SGD-ICP, layers encoder.0+encoder.1+decoder.0+decoder.1, teacher_statistics false"
    assert second == "SGD-ICP, layers encoder.0, teacher_statistics true"


def test_a_figure_is_of_one_training_and_of_the_seed_that_most_have(results: Path) -> None:
    other = vae(beta=4.0)  # another training: a figure of its own
    fake(results, other, folder_of(results, "none"))
    for seed in (1, 2, 3):  # on seed 0 there are four, on the others as many or fewer
        fake(results, vae("sgd", steps=3, seed=seed), folder_of(results, "sgd"))
    for optimizer in OPTIMIZERS:
        state = "finished" if optimizer != "none" else "running"
        fake(results, vae(optimizer, seed=1), folder_of(results, optimizer), state)
    drawn, notes = reconstruction_figures(read_runs(results)[0])
    assert set(drawn) == {f"figure3-digits-{vae().group_id}", f"figure3-digits-{other.group_id}"}
    assert len(drawn[f"figure3-digits-{other.group_id}"].axes) == 4 * 6
    assert "beta 4" in words(drawn[f"figure3-digits-{other.group_id}"])[0]
    (note,) = notes
    assert all(vae("sgd", steps=3, seed=seed).run_id in note for seed in (1, 2, 3))
    assert "seed 0" in note
    fake(results, vae("adam", steps=3, seed=1), folder_of(results, "adam"))
    drawn, notes = reconstruction_figures(read_runs(results)[0])
    assert "seed 1" in words(drawn[f"figure3-digits-{vae().group_id}"])[0]
    assert vae().run_id in notes[0]  # the baseline


def fake(results: Path, config: RunConfig, like: Path, state: str = "finished") -> Path:
    """The folder of a run that was never trained, with the checkpoint of another."""
    folder = shutil.copytree(like, results / config.run_id)
    (folder / "config.json").write_text(json.dumps({"config": config.model_dump(mode="json")}))
    (folder / "status.json").write_text(json.dumps({"state": state}))
    return folder


def test_there_is_an_end_to_the_rows(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_ROWS == 12
    monkeypatch.setattr("icpctl.report.figures.reconstruction.MOST_ROWS", 5)  # not that many are drawn here
    for steps in (6, 7, 8):
        fake(results, vae("ademamix", steps=steps), folder_of(results, "ademamix"))
    figure, notes = only_figure(results)
    assert len(figure.axes) == 4 * 6 * 5
    (note,) = notes
    assert "5 rows" in note
    assert [steps for steps in (5, 6, 7, 8) if vae("ademamix", steps=steps).run_id in note] == [7, 8]


def test_a_copy_of_a_run_is_one_row(results: Path) -> None:
    copy = shutil.copytree(folder_of(results, "adam"), results / "a copy")
    (copy / "checkpoints" / "last.pt").unlink()
    figure, notes = only_figure(results)
    assert len(figure.axes) == 4 * 6 * 4
    assert not notes


def test_what_cannot_be_read_is_noted_and_left_out(results: Path) -> None:
    (folder_of(results, "sgd") / "checkpoints" / "last.pt").write_bytes(b"torn")
    (folder_of(results, "adam") / "checkpoints" / "last.pt").unlink()
    change(folder_of(results, "ademamix"), fingerprint="of other data")
    figure, notes = only_figure(results)
    assert [word for word in words(figure) if word in METHODS] == ["baseline"] * 2
    for optimizer, why in (
        ("sgd", "truncated"),
        ("adam", "no checkpoint"),
        ("ademamix", "not what they were trained on"),
    ):
        assert sum(vae(optimizer).run_id in note and why in note for note in notes) == 1
    change(folder_of(results, "none"), model={})
    drawn, notes = reconstruction_figures(read_runs(results)[0])
    assert not drawn
    assert sum(vae().run_id in note and "do not fit" in note for note in notes) == 1


def change(folder: Path, **entries: Any) -> None:
    file = folder / "checkpoints" / "last.pt"
    torch.save(torch.load(file, weights_only=True) | entries, file)


def test_missing_data_are_looked_for_once_and_are_one_note(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, calls = data.load, []

    def load_and_count(*arguments: Any) -> data.ImageData:
        calls.append(arguments)
        return load(*arguments)

    monkeypatch.setattr(data, "load", load_and_count)
    configs = [vae(optimizer, dataset=f"folder:{tmp_path}/gone") for optimizer in ("none", "sgd")]
    figure, left_out = reconstruction_figure(
        {
            config.run_id: RunRecord(folder_of(trained, config.optimizer), config, {}, [], "", np.array([]), {})
            for config in configs
        }
    )
    assert figure is None
    assert len(calls) == 1  # it may be a download that fails
    ((why, runs),) = left_out.items()
    assert "gone" in why
    assert runs == [config.run_id for config in configs]


# ── Files


def write_all(folder: Path) -> tuple[list[Path], list[str]]:
    drawings, notes = figures.draw(report.build(folder), paper=True)
    return figures.write([drawing for drawing in drawings if drawing.name.startswith("figure")], folder), notes


@pytest.fixture(scope="module")
def written(trained: Path) -> Iterator[dict[str, bytes]]:
    files, notes = write_all(trained)
    assert not notes
    yield {file.name: file.read_bytes() for file in files}
    shutil.rmtree(trained / "figures")


def test_files_are_png_svg_and_pdf(written: dict[str, bytes], moved: pd.DataFrame, tmp_path: Path) -> None:
    names = ("figure1", f"figure3-digits-{vae().group_id}")
    assert sorted(written) == sorted(["figure1.csv", *(f"{name}.{kind}" for name in names for kind in KINDS)])
    assert [*KINDS] == ["png", "svg", "pdf"]
    for name, content in written.items():
        file = tmp_path / name
        file.write_bytes(content)
        if name.endswith("png"):
            with Image.open(file) as image:
                assert min(image.info["dpi"]) >= 200
                image.load()
        elif name.endswith("svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg")
        elif name.endswith("pdf"):
            assert content.startswith(b"%PDF-")
            assert b"/Type /Font" in content
            assert b"CreationDate" not in content
    table = pd.read_csv(tmp_path / "figure1.csv")
    assert table.columns.tolist() == ["method", "step", "point", "label", "x1", "x2", "probability"]
    np.testing.assert_allclose(table["probability"], moved["probability"], atol=1e-6)


def test_the_same_runs_give_the_same_files(written: dict[str, bytes], trained: Path) -> None:
    torch.set_num_threads(2)
    try:
        files, _ = write_all(trained)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert {file.name: file.read_bytes() for file in files} == written
    assert {file.name for file in (trained / "figures").iterdir()} == set(written)  # no temporary files


def test_a_report_downloads_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Figure 3 needs the data set; where it is not there, the figure is left out with the reason."""
    config = vae("none", dataset="cub", data_dir=tmp_path)
    results = tmp_path / "results"
    shutil.copytree(folder_of(trained, "none"), results / config.run_id)
    folder = RunFolder(results, config)
    folder.write_config(config, {}, {})
    rows = folder.metrics_file.read_text()
    folder.metrics_file.write_text(rows.replace(folder_of(trained, "none").name, config.run_id))

    def fail(*_: Any) -> None:
        raise AssertionError("a download was begun")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    drawings, notes = figures.draw(report.build(results))
    assert not any(drawing.plate for drawing in drawings)
    assert any("nothing is downloaded now" in note for note in notes)


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(icpctl.UserError, match="figures"):
        figures.write([], tmp_path)
