"""FID and KID of images against torch-fidelity's own; weights, classifiers, and no network."""

from __future__ import annotations

import hashlib
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
import torch_fidelity
from checkpoints import MakesFolder
from fidelities import CPU, Asked, files, images, run
from test_fidelity_formulas import frechet, mmd2
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity import feature_extractor_inceptionv3 as inception

from icpctl import UserError
from icpctl.models.network import load_trained, set_precision
from icpctl.tasks import fidelity

Serve = Callable[[str, bytes], None]


@pytest.fixture
def ask() -> Asked:
    return Asked()


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of the test's own, and a URL of this machine where nobody listens."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights-00000000.pth")


def test_fid_is_computed_in_float64(ask: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def features(x: Tensor) -> Tensor:  # whose means in float32 are off by thousandths
        return x[:, :2, 0, 0].float() + 30_000

    monkeypatch.setattr(fidelity.ClassifierFeatures, "forward", lambda self, x: (features(x),))
    real, generated = images(200), images(200, 1)
    fid, kid = ask(real, classifier=run(tmp_path / "run"), prior=generated).values()
    assert fid == pytest.approx(frechet(features(generated).double(), features(real).double()), rel=1e-9)
    assert kid == pytest.approx(mmd2(features(generated).double(), features(real).double()), rel=1e-5)


# ── Inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the form of the published file: a dict in torch's old format, its SHA-256 in the name."""
    with (
        patch.object(inception, "load_state_dict_from_url"),
        patch.object(inception.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        network = inception.FeatureExtractorInceptionV3(fidelity.INCEPTION, ["2048"])
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            state[name] = tensor
            if name.endswith("conv.weight"):  # so that the features do not fade from layer to layer
                state[name] = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file.rename(file.with_name(f"weights-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"))


def own(generated: Tensor, real: Tensor, **options: Any) -> dict[str, float]:
    """What torch-fidelity makes of the images; it wants them as items of a Dataset."""
    names: Any = {"fid": True, "kid": True, "cuda": False, "cache": False, "save_cpu_ram": True, "verbose": False}
    one, other = (
        type("", (Dataset,), {"__len__": x.__len__, "__getitem__": x.__getitem__})() for x in (generated, real)
    )
    return torch_fidelity.calculate_metrics(input1=one, input2=other, **names, **options)  # type: ignore[no-any-return]


def once(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function of an array, which for an array of the same bytes is not computed anew: 2,048 features take seconds."""
    known: dict[bytes, Any] = {}

    def remembered(matrix: Any) -> Any:
        key = matrix.tobytes()
        if key not in known:
            known[key] = function(matrix)
        return known[key]

    return remembered


def test_inception_equals_torch_fidelitys(
    ask: Asked, weights: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(np.linalg, "eigvals", once(np.linalg.eigvals))
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", f"http://127.0.0.1:9/{weights.name}")  # it is the published file
    real, generated = images(3, 0, 16), images(2, 1, 16) // 2
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    metrics = ask(real, weights, prior=generated)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert ask.said == ["Inception features of 5 images: this takes a while on a CPU …"]
    assert len(ask.warned) == 1
    assert "FID is biased: 2 images are few for 2,048 features, whose covariance is singular" in ask.warned[0]
    assert capfd.readouterr() == ("", "")
    expected = own(generated, real, kid_subset_size=2, feature_extractor_weights_path=str(weights))
    assert metrics.keys() == {"fid_prior", "kid_prior"}
    assert metrics["fid_prior"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    assert metrics["kid_prior"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)  # of float32

    monkeypatch.setattr(
        inception, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights-00000000.pth"
    )  # now it is another one
    own_name = f"_by_inception-{weights.stem.removeprefix('weights-')}"
    assert ask(real, weights, prior=generated) == {f"{name}{own_name}": value for name, value in metrics.items()}


def test_weights_that_are_code_are_refused_and_not_run(ask: Asked, tmp_path: Path) -> None:
    evil = MakesFolder(tmp_path / "was here")
    torch.save(evil, tmp_path / "evil.pth")
    torch.save({"fc.weight": evil}, tmp_path / "inside.pth")
    torch.save({"fc.weight": evil}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(evil))
    for name in ("evil", "inside", "old", "pickle"):
        with pytest.raises(UserError, match=f"--fid-weights .*{name}.pth.*{inception.URL_INCEPTION_V3}"):
            ask(images(2), tmp_path / f"{name}.pth", prior=images(2))
    assert not (tmp_path / "was here").exists()


def test_other_files_are_no_weights(ask: Asked, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "half.pth").write_bytes(weights.read_bytes()[:10_000_000])
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    faults = dict.fromkeys(("text", "empty", "half", "tensor", "number"), "it is damaged, or holds something else")
    faults |= {"missing": "No such file", "other": "its tensors are not those of the network"}
    for name, fault in faults.items():
        with pytest.raises(UserError, match=f"{name}.pth: {fault}"):
            ask(images(2), tmp_path / f"{name}.pth", prior=images(2))


def test_without_a_network_they_are_missing_and_nothing_else(ask: Asked, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(images(2), prior=images(2)) == {}
    (warning,) = ask.warned
    for part in ("FID and KID are missing", inception.URL_INCEPTION_V3, "refused", "--fid-weights", "--fid-features"):
        assert part in warning
    assert capfd.readouterr() == ("", "")


def test_a_silent_server_is_not_waited_for(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "DOWNLOAD_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(inception, "URL_INCEPTION_V3", f"http://127.0.0.1:{silent.getsockname()[1]}/weights-0.pth")
        assert ask(images(2), prior=images(2)) == {}
    assert "timed out" in ask.warned[0]
    assert socket.getdefaulttimeout() is None


Quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves a file of this name and content in the place of the published weights."""
    folder = tmp_path / "www"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()

        def serve(name: str, content: bytes) -> None:
            (folder / name).write_bytes(content)
            monkeypatch.setattr(inception, "URL_INCEPTION_V3", f"http://127.0.0.1:{http.server_port}/{name}")

        yield serve
        http.shutdown()


def test_weights_are_downloaded_once(
    ask: Asked, weights: Path, server: Serve, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    colours = Mock(return_value=lambda x: (x.float().mean(dim=(2, 3)),))
    monkeypatch.setattr(fidelity, "_create", colours)  # a quicker network
    monkeypatch.setattr(fidelity, "_identity", lambda module: b"")
    server(weights.name, weights.read_bytes())
    assert ask(images(2), prior=images(2, 1))
    kept = Path(torch.hub.get_dir()) / "checkpoints" / weights.name
    assert kept.read_bytes() == weights.read_bytes()
    assert colours.call_args.kwargs == {"feature_extractor_weights_path": str(kept)}
    assert [message.split()[0] for message in ask.said] == ["Downloading", "Inception"]
    # Without the server the file that is there does.
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", f"http://127.0.0.1:9/{weights.name}")
    assert ask(images(2), prior=images(2, 1))
    assert len(ask.said) == 2
    # A damaged one does not, and is fetched again where that is possible.
    kept.write_bytes(weights.read_bytes()[:1000])
    assert ask(images(2), prior=images(2, 1)) == {}
    assert "could not be downloaded" in ask.warned[-1]
    server(weights.name, weights.read_bytes())
    assert ask(images(2), prior=images(2, 1))
    assert kept.read_bytes() == weights.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_something_else_at_the_url_is_not_taken(ask: Asked, server: Serve) -> None:
    server("weights-12345678.pth", b"<html>Log in to this network</html>")
    assert ask(images(2), prior=images(2)) == {}
    assert "invalid hash" in ask.warned[0]
    assert not list(Path(torch.hub.get_dir()).rglob("*.p*"))  # nor a part of it


# ── a classifier's features


def penultimate(folder: Path, x: Tensor) -> Tensor:
    """The features (N, 64) of images (N, 3, S, S) in [0, 255] that need no resizing: what is left without the last layer."""
    network = load_trained(folder, device="cpu").network
    model = network.model.eval()
    model.fc = nn.Identity()
    with torch.no_grad():
        return model((x / 255 - network.mean) / network.std)  # type: ignore[no-any-return]


def test_a_classifiers_features_make_metrics_of_their_own_name(ask: Asked, tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    trained = load_trained(folder, device="cpu")
    real, generated = images(80), images(70, 1) // 2
    metrics = ask(real, classifier=folder, prior=generated, reconstruction=real)
    assert len(ask.warned) == 1
    assert "70 images are few for 64 features, and fewer" in ask.warned[0]  # not singular
    name = trained.config.run_id
    assert ask.said == [f"{name} features of 150 images: this takes a while on a CPU …"]
    short = ("fid_prior", "kid_prior", "fid_reconstruction", "kid_reconstruction")
    digest = next(iter(metrics)).rpartition("-")[2]
    assert len(digest) == 8
    assert list(metrics) == [f"{metric}_by_{name}-{digest}" for metric in short]
    fid, kid, fid_of_equal, kid_of_equal = metrics.values()
    of_real, of_generated = (penultimate(folder, x.float()).double() for x in (real, generated))
    assert fid == pytest.approx(frechet(of_generated, of_real), rel=1e-5)
    assert fid_of_equal == pytest.approx(0, abs=1e-6 * fid)
    assert -0.1 * kid < kid_of_equal < 0  # it leaves out the distance of an image from itself
    # torch-fidelity knows the features by name.
    layers = {"feature_layer_fid": "penultimate", "feature_layer_kid": "penultimate"}
    expected = own(
        generated, real, feature_extractor="icpctl-classifier", **layers, kid_subset_size=70, trained=trained
    )
    assert fid == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert kid == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    # The same once more, of the same run under another path.
    assert ask(real, classifier=folder / "checkpoints" / "last.pt", prior=generated, reconstruction=real) == metrics


def test_images_are_resized_to_those_of_the_classifiers_training(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", image_size=8)
    trained = load_trained(folder, device="cpu")
    module = fidelity._create(fidelity.CLASSIFIER, fidelity.CLASSIFIER_LAYER, CPU, trained=trained)
    small = images(4)
    assert torch.allclose(module(small)[0], penultimate(folder, small.float()), atol=1e-5)
    doubled = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    back = nn.functional.interpolate(doubled.float(), (8, 8), mode="bilinear", antialias=True)
    assert not torch.equal(back, nn.functional.interpolate(doubled.float(), (8, 8), mode="bilinear"))
    assert torch.allclose(module(doubled)[0], penultimate(folder, back), atol=1e-5)


def test_what_is_no_classifier_is_refused(ask: Asked, tmp_path: Path) -> None:
    vae = run(tmp_path / "vae", model="vae")
    convolutions = run(tmp_path / "squeezenet", model="squeezenet1_1", layers=["features.4"])
    diverged = run(tmp_path / "diverged", mean=float("nan"))
    for path, fault in (
        (vae, "vae, a generative model"),
        (convolutions, "squeezenet1_1 .* has no linear layer"),
        (tmp_path / "missing", "no run folder or checkpoint"),
        (diverged, "are not finite"),
    ):
        with pytest.raises(UserError, match=fault) as caught:
            ask(images(2), classifier=path, prior=images(2))
        assert "--fid-features" in str(caught.value)
    assert not files()


def test_features_are_ieee_float32(ask: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watching(self: fidelity.ClassifierFeatures, x: Tensor) -> tuple[Tensor]:
        seen.append(
            (torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.backends.cudnn.allow_tf32, self.training)
        )
        return (x[:, 0, 0].float(),)

    monkeypatch.setattr(fidelity.ClassifierFeatures, "forward", watching)
    set_precision("tf32")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            ask(images(2), classifier=run(tmp_path / "run", precision="bf16"), prior=images(2, 1))
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        set_precision("float32")
    assert seen == [(False, False, False, False)] * 2


def test_few_images(ask: Asked, tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    assert ask(images(1), classifier=folder, prior=images(9)) == {}
    assert ask(images(9), classifier=folder, prior=images(9), reconstruction=images(1)) == {}
    assert all("missing" in warning and "here is 1" in warning for warning in ask.warned)
    assert len(ask.warned) == 2
    assert np.isfinite(list(ask(images(2), classifier=folder, prior=images(2, 1)).values())).all()
    ask(images(65), classifier=folder, prior=images(64, 1), reconstruction=images(65, 2))
    assert len(ask.warned) == 4  # once, whatever the number of sets
    assert "64 images are few for 64 features, whose covariance is singular" in ask.warned[-1]
    ask(images(65), classifier=folder, prior=images(65, 1))
    assert "singular" not in ask.warned[-1]
    assert len(ask.warned) == 5
    ask(images(640), classifier=folder, prior=images(640, 1))
    assert len(ask.warned) == 5


def test_images_are_not_made_where_they_cannot_be_measured(ask: Asked) -> None:
    never = Mock(side_effect=AssertionError)
    assert fidelity.distances(images(2), {"prior": never}, weights=None, classifier=None, **ask.told) == {}


def test_it_can_be_stopped_between_pieces(ask: Asked, tmp_path: Path) -> None:
    folder, pause = run(tmp_path / "run"), Mock(side_effect=[None, KeyboardInterrupt])
    made: dict[str, Callable[[], Tensor]] = {"prior": lambda: images(600, 1, 4)}
    options: dict[str, Any] = {"weights": None, "classifier": folder} | ask.told
    with pytest.raises(KeyboardInterrupt):
        fidelity.distances(images(3, 0, 4), made, **options, pause=pause)
    assert len(files()) == 1  # what was done is kept


def test_what_could_not_be_measured_is_refused_at_once(weights: Path, tmp_path: Path) -> None:
    fidelity.check(None, None)
    fidelity.check(None, run(tmp_path / "run"))
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="its tensors are not those of the network"):
        fidelity.check(tmp_path / "other.pth", None)
    with pytest.raises(UserError, match="--fid-features: There is no run folder"):
        fidelity.check(None, tmp_path / "nowhere")
