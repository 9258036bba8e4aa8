"""The VAE and its task: the loss against closed forms, the step against a plain one in float64, the metrics."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import icpctl
from icpctl.config.recipes import default_layers
from icpctl.data.device import DeviceSplit
from icpctl.methods.icp import perturbation as icp
from icpctl.methods.taps import tap
from icpctl.models import VAE, VAEOutput
from icpctl.models.network import Network, load_trained
from icpctl.runs.folder import TIMINGS, RunFolder
from icpctl.tasks.generation import SAMPLE_BATCH, Generation, sample
from icpctl.training.engine import check_data

SIZE = 16
LAYERS = default_layers("vae", SIZE)


def task(**given: Any) -> Generation:
    return Generation(icpctl.RunConfig(model="vae", dataset="digits", **given))


def small_vae() -> VAE:
    """The same weights at every call, in float64, with statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    model = VAE(SIZE, latent_dim=6).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def batch() -> Tensor:
    return torch.randn(8, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@settings(deadline=None, max_examples=30)
@given(beta=st.floats(0, 10), number=st.integers(1, 5), latent=st.integers(1, 7), seed=st.integers(0, 2**16))
def test_loss_is_squared_error_and_kl_over_the_values_of_an_image(
    beta: float, number: int, latent: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, reconstruction = torch.randn(2, number, 3, SIZE, SIZE, generator=draw, dtype=torch.float64)
    mean, log_variance = torch.randn(2, number, latent, generator=draw, dtype=torch.float64)
    output = VAEOutput(reconstruction, mean, log_variance)
    kl = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    error = ((x - reconstruction) ** 2).sum((1, 2, 3))
    values = 3 * SIZE**2

    loss = task(beta=beta).loss(output, x)
    assert float(loss) == pytest.approx(float(((error + beta * kl) / values).mean()), rel=1e-12)
    metrics = task(beta=beta).metrics(task(beta=beta).record(output, x), torch.zeros(number))
    assert metrics == pytest.approx(
        {"loss": float(loss), "reconstruction_loss": float(error.mean() / values), "kl": float(kl.mean())}
    )


def naive_passes(model: VAE, x: Tensor, noise: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """The stages' features, reconstruction, μ and log σ², written out; z = μ without noise."""
    features = []
    h = x
    for stage in model.encoder:
        h = stage(h)
        features.append(h)
    mean, log_variance = model.to_posterior(h.flatten(1)).chunk(2, 1)
    z = mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise
    h = model.from_latent(z).view(len(x), -1, 4, 4)
    for stage in model.decoder:
        h = stage(h)
        features.append(h)
    return features, model.to_image(h), mean, log_variance


def naive_loss(x: Tensor, output: Sequence[Tensor], beta: float) -> Tensor:
    reconstruction, mean, log_variance = output
    kl = 0.5 * (mean**2 + torch.exp(log_variance) - 1 - log_variance)
    return ((reconstruction - x) ** 2).mean() + beta * kl.sum(1).mean() / x[0].numel()


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("a", [1.0, 0.6, 0.0])
def test_step_equals_the_naive_one(name: str, a: float) -> None:
    ours, theirs, x, beta, steps = small_vae(), small_vae(), batch(), 0.7, 3
    lr = 50.0 if name == "sgd" else 2e-3
    torch.manual_seed(5)
    loss, log = icpctl.SelfDistiller(ours, LAYERS, name, steps=steps, lr=lr)(x, x, a, task(beta=beta).loss)
    loss.backward()

    torch.manual_seed(5)
    noise = torch.randn(8, 6, dtype=torch.float64)  # one for teacher and student
    student, *student_out = naive_passes(theirs, x, noise)
    theirs.eval()
    x_t, m, v = x, torch.zeros_like(x), torch.zeros_like(x)
    for t in range(1, steps + 1):
        x_t = x_t.detach().requires_grad_()
        _, *out = naive_passes(theirs, x_t, None)  # z = μ
        (g,) = torch.autograd.grad(naive_loss(x, out, beta), x_t)  # against the original image
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = g if name == "sgd" else (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        x_t = (x_t - lr * u).detach()
    theirs.train()
    with torch.no_grad():
        teacher, *_ = naive_passes(theirs, x_t, noise)
    count = len(student)
    weights = [np.cos(i / (count - 1) * np.pi / 4) for i in range(count)]
    distance = sum(w * ((s - t) ** 2).mean() for w, s, t in zip(weights, student, teacher, strict=True))
    expected = a * naive_loss(x, student_out, beta) + (1 - a) * distance
    expected.backward()

    assert torch.allclose(log["x_icp"], x_t, rtol=0, atol=1e-12)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    for (key, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # At a = 0 what lies behind the last stage learns nothing.
        mine, naive = (0.0 * p if p.grad is None else p.grad for p in (parameter, other))
        assert torch.allclose(mine, naive, rtol=1e-7, atol=1e-12), key


def test_teacher_and_student_draw_the_same_noise() -> None:
    model, x = small_vae(), batch()
    _, log = icpctl.SelfDistiller(model, LAYERS, "adam", steps=1, lr=1e-9)(x, x, 0.5, task().loss)
    assert log["feature_loss"] < 1e-14  # different noise would move the decoder's features by some 1e-1
    one, other = model(x), model(x)
    assert (one.reconstruction - other.reconstruction).abs().max() > 1e-2
    model.eval()
    assert torch.equal(model(x).reconstruction, model.decode(model.encode(x)[0]))  # z = μ


def test_log_of_the_step_has_the_models_own_output_without_its_graph() -> None:
    x = batch()
    _, log = icpctl.SelfDistiller(small_vae(), LAYERS, "adam", steps=1)(x, x, 0.5, task().loss)
    assert isinstance(log["output"], VAEOutput)
    assert not any(tensor.requires_grad for tensor in log["output"])


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_stages_halve_and_double_the_side(size: int) -> None:
    model, layers = VAE(size, latent_dim=5), default_layers("vae", size)
    with torch.no_grad(), tap(model, layers) as features:
        output = model(torch.randn(2, 3, size, size))
    sides = [feature.shape[-1] for feature in features]
    halved = [size >> i for i in range(1, len(layers) // 2 + 1)]
    assert sides == [*halved, *(2 * side for side in reversed(halved))]
    assert halved[-1] == 4
    assert output.reconstruction.shape == (2, 3, size, size)
    assert output.mean.shape == output.log_variance.shape == (2, 5)


@pytest.mark.parametrize("size", [8, 24, 48])
def test_sizes_that_are_no_powers_of_two_are_refused(size: int) -> None:
    with pytest.raises(icpctl.UserError, match="vae takes images of other sizes: give one of 16, 32, 64"):
        icpctl.RunConfig(model="vae", dataset="digits", image_size=size)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> icpctl.Run:
    config = icpctl.RunConfig(
        model="vae", dataset="digits", optimizer="adam", epochs=6, warmup_epochs=4, train_size=400, beta=0.5, seed=3
    )
    return icpctl.train(config, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def network(trained: icpctl.Run) -> Network:
    return load_trained(trained.path, device="cpu").network


def images(count: int) -> Tensor:
    from icpctl import data

    return torch.from_numpy(np.array(data.load("digits", image_size=SIZE).test.images[:count]))


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 20.0), ("adam", 2e-3), ("ademamix", 2e-3)])
def test_perturbation_lowers_the_loss_of_a_trained_model_at_every_step(
    optimizer: str, lr: float, network: Network
) -> None:
    x = network.normalise(images(64))
    losses: list[Tensor] = []
    generation = task(beta=0.5)
    x_icp = icp.perturb(x, lambda z: generation.loss(network.model(z), x), optimizer, 10, lr, losses=losses)
    with torch.no_grad(), icp.eval_mode(network.model):
        losses.append(generation.loss(network.model(x_icp), x))
    values = [float(loss) for loss in losses]
    assert all(later < earlier for earlier, later in itertools.pairwise(values)), values


def test_ssim_and_psnr_are_means_over_the_images(trained: icpctl.Run, network: Network) -> None:
    originals = images(360)
    metrics = task(beta=0.5).evaluate(network, _split(originals))
    with torch.no_grad(), icp.eval_mode(network.model):
        output = network.model(network.normalise(originals))
    pixels = (output.reconstruction * network.std + network.mean).mul(255).round().clamp(0, 255)
    ssim, psnr = [], []
    for original, drawn in zip(originals.numpy(), pixels.numpy().astype(np.uint8), strict=True):
        ssim.append(structural_similarity(original, drawn, win_size=7, data_range=255, channel_axis=0))
        error = (original.astype(float) - drawn.astype(float)) ** 2
        psnr.append(10 * np.log10(255**2 / error.mean()))
    assert metrics["ssim"] == pytest.approx(np.mean(ssim), rel=1e-6)
    assert metrics["psnr"] == pytest.approx(np.mean(psnr), rel=1e-6)

    recorded = trained.metrics[(trained.metrics["split"] == "test") & (trained.metrics["epoch"] == 5)]
    values = dict(zip(recorded["metric"], recorded["value"], strict=True))
    for name, value in metrics.items():
        assert values[name] == pytest.approx(value, rel=1e-5), name


def _split(originals: Tensor) -> DeviceSplit:
    from icpctl.data import Split

    return DeviceSplit(Split(originals.numpy(), np.zeros(len(originals), np.int64)), torch.device("cpu"))


def test_fewer_samples_are_the_first_of_more(network: Network) -> None:
    many = sample(network, SAMPLE_BATCH + 3, seed=1)
    assert many.shape == (SAMPLE_BATCH + 3, 3, SIZE, SIZE)
    assert torch.equal(sample(network, 7, seed=1), many[:7])
    assert not torch.equal(sample(network, 7, seed=2), many[:7])
    assert not torch.equal(many[:3], many[SAMPLE_BATCH:])


def test_evaluation_gives_the_figures_of_the_run_and_says_that_fid_is_missing(trained: icpctl.Run) -> None:
    notes: list[str] = []
    metrics = icpctl.evaluate(trained.path, device="cpu", warn=notes.append)
    last = trained.metrics[(trained.metrics["split"] == "test") & (trained.metrics["epoch"] == 5)]
    recorded = dict(zip(last["metric"], last["value"], strict=True))
    of_training_images = {"sharpness", "generalization_gap_loss", "generalization_gap_ssim"}
    assert recorded.keys() == metrics.keys() | of_training_images
    assert metrics == pytest.approx({name: recorded[name] for name in metrics}, rel=1e-5)
    assert not any(name.startswith(("fid", "kid")) for name in metrics)
    assert len(notes) == 1
    assert "FID and KID are missing" in notes[0]
    assert "--fid-weights" in notes[0]


def test_a_run_notes_that_fid_is_missing(trained: icpctl.Run) -> None:
    from icpctl import report

    found = report.build(trained.path.parent)
    assert any(f"1 run, {trained.path.name}: FID and KID are missing" in note for note in found.notes)


def test_killed_after_the_last_epoch_it_measures_what_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: Path
) -> None:
    config = icpctl.RunConfig(
        model="vae", dataset="digits", optimizer="none", epochs=1, train_size=60, fid_features=classifier, seed=4
    )
    undisturbed = icpctl.train(config, tmp_path / "undisturbed")
    for name in ("append_metrics", "write_status"):  # the last of each, before and after the rows are written
        original = getattr(RunFolder, name)

        def killed(*given: Any, original: Any = original, **more: Any) -> Any:
            if given[1] == "finished" or (len(given) > 2 and "fid_prior" in str(given[2])):
                raise SystemExit
            return original(*given, **more)

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, name, killed)
            with pytest.raises(SystemExit):
                icpctl.train(config, tmp_path / name)
        again = icpctl.train(config, tmp_path / name)
        assert untimed(again.metrics).equals(untimed(undisturbed.metrics))
        status = json.loads((again.path / "status.json").read_text())
        assert status["state"] == "finished"
        assert "FID is biased" in status["notes"][0]


def untimed(metrics: pd.DataFrame) -> pd.DataFrame:
    return metrics[~metrics["metric"].isin(TIMINGS)].reset_index(drop=True)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = icpctl.RunConfig(model="resnet20", dataset="digits", optimizer="none", epochs=1, train_size=100)
    return icpctl.train(config, tmp_path_factory.mktemp("features")).path


def test_recorded_fid_is_of_independently_decoded_images(
    trained: icpctl.Run, network: Network, classifier: Path
) -> None:
    metrics = icpctl.evaluate(
        trained.path, samples=30, fid_features=classifier, device="cpu", warn=lambda message: None
    )
    originals = images(360)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((3, 0)).generate_state(1, np.uint64)[0]))
    z = torch.randn(SAMPLE_BATCH, 128, generator=generator)[:30]
    with torch.no_grad(), icp.eval_mode(network.model):
        of_mean = network.model.decode(network.model.encode(network.normalise(originals))[0])  # type: ignore[operator]
        of_prior = network.model.decode(z)  # type: ignore[operator]
    judge = load_trained(classifier, device="cpu").network
    judge.model.fc = nn.Identity()

    def features(pixels: Tensor) -> Any:
        small = nn.functional.interpolate(pixels.float(), (8, 8), mode="bilinear", antialias=True)
        with torch.no_grad(), icp.eval_mode(judge.model):
            return judge.model(judge.normalise(small)).double().numpy()

    def frechet(a: Any, b: Any) -> float:
        one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = scipy.linalg.sqrtm(one @ other + 1e-12 * np.eye(len(one))).real
        return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + other - 2 * root))

    real = features(originals)
    for name, x in (("reconstruction", of_mean), ("prior", of_prior)):
        expected = frechet(features(network.pixels(x)), real)
        (value,) = (metrics[key] for key in metrics if key.startswith(f"fid_{name}_by_"))
        assert value == pytest.approx(expected, rel=1e-3), name


def test_evaluation_on_another_data_set_needs_no_classes(trained: icpctl.Run) -> None:
    metrics = icpctl.evaluate(trained.path, "photos", device="cpu", warn=lambda message: None)
    assert 0 < metrics["ssim"] < 1


def test_settings_of_the_vae_mean_nothing_to_a_classifier() -> None:
    plain = icpctl.RunConfig(model="resnet20", dataset="digits")
    assert icpctl.RunConfig(model="resnet20", dataset="digits", latent_dim=7, beta=3.0) == plain
    assert icpctl.RunConfig(model="vae", dataset="digits", beta=3.0).run_id != task().config.run_id


def test_a_classifier_needs_two_classes_and_a_vae_one(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        folder = tmp_path / split / "bird"
        folder.mkdir(parents=True)
        for i in range(20):
            Image.effect_noise((16, 16), 50 + i).convert("RGB").save(folder / f"{i}.png")
    where: dict[str, Any] = {"dataset": f"folder:{tmp_path}", "image_size": 16}
    check_data([icpctl.RunConfig(model="vae", **where)])
    with pytest.raises(icpctl.UserError, match="A classifier needs two or more; the model vae needs none"):
        check_data([icpctl.RunConfig(model="resnet20", **where)])
