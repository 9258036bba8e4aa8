"""FID and KID of generated images against real ones, by torch-fidelity.

Both compare features (N, D) of two sets of images:

    FID = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½)    with means μ and covariances Σ (Heusel et al., arXiv 1706.08500)
    KID = the unbiased MMD² with the kernel (x·y/D + 1)³, the mean over 100 subsets (Bińkowski et al., arXiv 1801.01401)

FID and KID of published results take the features from one Inception network, D = 2048. Those of a classifier of the user's
own need no download, but compare with one another alone; so these metrics carry the classifier's name and a digest of its
weights: the same run has others after further training, or on another machine.

Features are kept in `features/` of the user's cache, a file for each 500 images. That folder can be removed at any time.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
import torch_fidelity
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity import feature_extractor_inceptionv3, metric_fid, metric_kid
from torch_fidelity.utils import create_feature_extractor

from icpctl.errors import UserError
from icpctl.files import write_atomic
from icpctl.models.network import Images, Network, Trained, load_trained, set_precision

INCEPTION, INCEPTION_LAYER = "inception-v3-compat", "2048"
CLASSIFIER, CLASSIFIER_LAYER = "icpctl-classifier", "penultimate"

FORMAT = 1
"""Goes up when the features are computed in another way, so that older ones are not taken for current ones."""

CHUNK = 500
"""Images in a file of the cache: a larger number of samples, of which the first ones are the same, computes the new ones."""

BATCH = 50
"""Images in a pass; Inception enlarges them to 299×299 pixels."""

ENOUGH = 10
"""Images for each feature below which FID's bias, which falls with the number of images, is worth a warning."""

DIGITS = 8
"""Of the digest of the weights in the name of a metric."""

KID_SUBSET = 1000  # images, torch-fidelity's default

DOWNLOAD_TIMEOUT = 20  # seconds without an answer


class ClassifierFeatures(torch_fidelity.FeatureExtractorBase):  # type: ignore[misc]
    """torch-fidelity's view of a trained classifier: (B, 3, H, W) uint8 → the inputs of its last linear layer, (B, D).

    Images are resized to the size of its training, bilinearly with antialiasing, and normalised as there.

    Raises:
        UserError: the model has no linear layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, features_list: list[str], trained: Trained, **settings: object) -> None:
        super().__init__(name, features_list)
        self.model, self.size = trained.network.model, trained.image_size
        self.register_buffer("mean", trained.network.mean)
        self.register_buffer("std", trained.network.std)
        if not self._linears():
            raise UserError(
                f"--fid-features: the model {trained.config.model} of {trained.file} has no linear layer, whose inputs would "
                "be the features. Give the run of another classifier."
            )

    def _linears(self) -> list[nn.Linear]:
        return [module for module in self.model.modules() if isinstance(module, nn.Linear)]

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (CLASSIFIER_LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return CLASSIFIER_LAYER

    def forward(self, images: Tensor) -> tuple[Tensor]:
        resized = F.interpolate(images.float(), self.size, mode="bilinear", antialias=True)
        inputs: list[Tensor] = []
        hook = self._linears()[-1].register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
        try:
            self.model(Network(self.model, self.mean, self.std).normalise(resized))
        finally:
            hook.remove()
        return (inputs[-1].flatten(1),)


torch_fidelity.register_feature_extractor(CLASSIFIER, ClassifierFeatures)


@dataclass(frozen=True)
class Extractor:
    """What makes features of images."""

    module: Any
    """A feature extractor of torch-fidelity: (B, 3, H, W) uint8 → ((B, D) float32,)."""

    title: str
    """Its name in messages."""

    suffix: str
    """Added to the names of the metrics."""

    identity: bytes
    """Equal exactly if the features are."""


def check(weights: Path | None, classifier: Path | None) -> None:
    """Refuse before the training what `distances` would refuse after it: files that are not there or something else.

    Raises:
        UserError: says which.
    """
    if classifier:
        _classifier(classifier, torch.device("cpu"))
    elif weights:
        _inception(weights, torch.device("cpu"))


def distances(
    real: Images,
    generated: Mapping[str, Callable[[], Tensor]],
    *,
    weights: Path | None,
    classifier: Path | None,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    pause: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """FID and KID of generated images.

    Args:
        real: (N, 3, H, W) uint8, on the device that computes the features.
        generated: what makes the same of generated images, by name, on any device; called if they can be measured.
        weights: file of the Inception weights; without it they are downloaded once.
        classifier: run folder or checkpoint of a classifier whose features stand in for Inception's.
        say: told what takes long.
        warn: told what is missing or not to be trusted, and why.
        pause: called between pieces of the work; may raise to stop it.

    Returns:
        `fid_NAME` and `kid_NAME` for every name, in squared features and without a unit; with a classifier
        `fid_NAME_by_RUN-DIGEST` and `kid_NAME_by_RUN-DIGEST`, with other weights than the published ones `fid_NAME_by_inception-DIGEST`.
        Empty if the Inception weights cannot be had.

    Raises:
        UserError: `weights` or `classifier` is not what it should be.
    """
    if classifier:
        extractor = _classifier(classifier, real.device)
    else:
        file = weights or _downloaded(say, warn)
        if file is None:
            return {}
        extractor = _inception(file, real.device)
    sets: list[Images] = [real, *(make() for make in generated.values())]
    fewest = min(map(len, sets))
    if fewest < 2:
        warn(f"FID and KID are missing: they compare two images or more with two or more, and here is {fewest}.")
        return {}
    of_real, *of_generated = _features(extractor, sets, say, pause)
    dimensions = of_real.shape[1]
    if fewest < ENOUGH * dimensions:
        singular = ", whose covariance is singular" if fewest <= dimensions else ""
        warn(
            f"FID is biased: {fewest:,} images are few for {dimensions:,} features{singular}, and fewer images give a larger "
            "FID. Compare it at equal numbers of images alone, take more, or read KID, which has no bias."
        )
    metrics = {}
    for name, features in zip(generated, of_generated, strict=True):
        metrics[f"fid_{name}{extractor.suffix}"] = _fid(features, of_real)
        metrics[f"kid_{name}{extractor.suffix}"] = _kid(features, of_real)
    return metrics


def _fid(features: Tensor, others: Tensor) -> float:
    """FID of features (N, D) and (M, D), float64 on the CPU: of float32, torch-fidelity's means were float32."""
    statistics = [metric_fid.fid_features_to_statistics(each) for each in (features, others)]
    return float(metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID])


def _kid(features: Tensor, others: Tensor) -> float:
    """KID of features (N, D) and (M, D), float64; the subsets are always the same."""
    size = min(KID_SUBSET, len(features), len(others))
    metric = metric_kid.kid_features_to_metric(features, others, kid_subset_size=size, verbose=False)
    return float(metric[metric_kid.KEY_METRIC_KID_MEAN])


def _classifier(path: Path, device: torch.device) -> Extractor:
    try:
        trained = load_trained(path, "last", str(device))
    except UserError as error:
        raise UserError(f"--fid-features: {error}") from error
    config = trained.config
    if config.task == "generation":
        raise UserError(
            f"--fid-features {path}: the run {config.run_id} is a {config.model}, a generative model. Give the run of a "
            "classifier."
        )
    module = _create(CLASSIFIER, CLASSIFIER_LAYER, device, trained=trained)
    settings = (config.model, config.stem, trained.image_size)
    weights = hashlib.sha256(json.dumps(settings).encode() + _state_digest(module)).hexdigest()
    identity = _identity(module, *settings)
    return Extractor(module, config.run_id, f"_by_{config.run_id}-{weights[:DIGITS]}", identity)


def _inception(weights: Path, device: torch.device) -> Extractor:
    """torch-fidelity's Inception, with the published weights or, by another name, with others that fit."""
    _verify(weights)
    try:
        module = _create(INCEPTION, INCEPTION_LAYER, device, feature_extractor_weights_path=str(weights))
    except RuntimeError:
        raise _wrong_weights(weights, "its tensors are not those of the network") from None
    digest = _sha256(weights)
    suffix = "" if digest.startswith(_published()) else f"_by_inception-{digest[:DIGITS]}"
    return Extractor(module, "Inception", suffix, _identity(module))


def _url() -> str:
    return str(feature_extractor_inceptionv3.URL_INCEPTION_V3)


def _published() -> str:
    """The first digits of the SHA-256 of the published weights: they are in the file's name, as with torch's own."""
    return _url().rpartition("-")[2].partition(".")[0]


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _downloaded(say: Callable[[str], None], warn: Callable[[str], None]) -> Path | None:
    """The file with the Inception weights where torch-fidelity keeps it, downloaded if it is missing or damaged.

    None, and a warning, if it cannot be downloaded.
    """
    url = _url()
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    timeout = socket.getdefaulttimeout()
    try:
        if file.exists() and _sha256(file).startswith(_published()):
            return file
        say(f"Downloading the Inception weights, 96 MB, to {file} …")
        file.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torch's download has none of its own
        torch.hub.download_url_to_file(url, str(file), _published(), progress=False)
    except (OSError, http.client.HTTPException, RuntimeError, ValueError) as error:
        warn(
            f"FID and KID are missing: the Inception weights could not be downloaded from {url} ({error}). Give the "
            "file with --fid-weights, or a trained classifier with --fid-features."
        )
        return None
    finally:
        socket.setdefaulttimeout(timeout)
    return file


def _verify(weights: Path) -> None:
    """torch-fidelity unpickles the weights, which runs what code is in them; so no file gets there that has any.

    Raises:
        UserError: the file cannot be read, or holds something else than tensors by name.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of what it takes the file for
            content = torch.load(weights, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _wrong_weights(weights, error.strerror or str(error)) from error
    except Exception:  # there is no list of what a file of any content leads to
        content = None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise _wrong_weights(weights, "it is damaged, or holds something else than tensors by name")


def _wrong_weights(weights: Path, fault: str) -> UserError:
    return UserError(
        f"--fid-weights {weights}: {fault}. It takes torch-fidelity's Inception weights, which are at {_url()}; or "
        "give a trained classifier with --fid-features."
    )


def _create(name: str, layer: str, device: torch.device, **settings: object) -> Any:
    """A feature extractor that is registered with torch-fidelity, on the device and in eval mode."""
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and then replaced
        return create_feature_extractor(name, [layer], cuda=False, verbose=False, **settings).to(device)


def _identity(module: Any, *settings: object) -> bytes:
    """SHA-256 of the extractor: names, versions, settings, and its state dict."""
    what = [FORMAT, torch_fidelity.__version__, module.get_name(), module.get_requested_features_list(), *settings]
    return hashlib.sha256(json.dumps(what).encode() + _state_digest(module)).digest()


def _state_digest(module: Any) -> bytes:
    """SHA-256 of a state dict: names, types, shapes, values."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _features(
    extractor: Extractor, sets: Sequence[Images], say: Callable[[str], None], pause: Callable[[], None]
) -> list[Tensor]:
    """The features (N, D) of each set of images (N, 3, H, W) uint8, as float64 on the CPU.

    Raises:
        UserError: features that are not finite.
    """
    device = sets[0].device
    keys: list[list[str]] = [[] for _ in sets]
    found: dict[str, NDArray[np.float32]] = {}
    missing: dict[str, tuple[Images, slice]] = {}  # to be taken again, as the images may be on the disk
    for mine, images in zip(keys, sets, strict=True):
        for start in range(0, len(images), CHUNK):
            part = slice(start, min(start + CHUNK, len(images)))
            key = _key(extractor, images[part])
            mine.append(key)
            kept = _kept(key, part.stop - part.start)
            if kept is None:
                missing[key] = images, part
            else:
                found[key] = kept
    if missing:
        number = sum(part.stop - part.start for _, part in missing.values())
        patience = ": this takes a while on a CPU" if device.type == "cpu" else ""
        say(f"{extractor.title} features of {number:,} images{patience} …")
    for key, (images, part) in missing.items():
        pause()
        with _exact(device):
            parts = [extractor.module(batch.to(device))[0].float().cpu() for batch in images[part].split(BATCH)]
        found[key] = torch.cat(parts).numpy()
        if not np.isfinite(found[key]).all():
            raise UserError(
                f"The features of {extractor.title} are not finite: its weights are damaged, or its training diverged. Give "
                "other weights with --fid-weights, or another classifier with --fid-features."
            )
        _keep(key, found[key])
    return [torch.from_numpy(np.concatenate([found[key] for key in mine])).double() for mine in keys]


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """IEEE float32 without gradients, whatever the run's precision: the features are kept for other runs."""
    before = "tf32" if torch.backends.cudnn.allow_tf32 else "float32"
    set_precision("float32")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        set_precision(before)


def _key(extractor: Extractor, images: Tensor) -> str:
    """64 hex digits, from the extractor and the images alone: not from where or how these are in memory."""
    digest = hashlib.sha256(extractor.identity + repr(tuple(images.shape)).encode())
    digest.update(images.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _file(key: str) -> Path:
    return platformdirs.user_cache_path("icpctl") / "features" / f"{key}.npz"


def _kept(key: str, number: int) -> NDArray[np.float32] | None:
    """Features (number, D) of the cache; None if they are not there, or damaged: the zip archive has a checksum."""
    try:
        with np.load(_file(key), allow_pickle=False) as archive:
            features: NDArray[np.float32] = archive["features"]
    except Exception:  # there is no list of what a damaged archive leads to
        return None
    return features if features.dtype == np.float32 and features.ndim == 2 and len(features) == number else None


def _keep(key: str, features: NDArray[np.float32]) -> None:
    """Put features into the cache; where that cannot be written, they are computed again the next time."""
    content = io.BytesIO()
    np.savez(content, features=features)
    with suppress(OSError, UserError):
        _file(key).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_file(key), content.getvalue())
