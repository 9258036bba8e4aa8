"""What a task is: its loss and its metrics. The engine asks for no more, and does not know which one it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from icpctl.config import RunConfig
from icpctl.data import ImageData
from icpctl.data.device import DeviceSplit
from icpctl.errors import UserError
from icpctl.models.network import Network


class Task(Protocol):
    """A task; see `icpctl.tasks.classification` and `icpctl.tasks.generation`."""

    def targets(self, x: Tensor, labels: Tensor) -> Tensor:
        """What the loss compares the outputs with, for normalised inputs (B, 3, H, W) and labels (B,)."""

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The batch mean of the task loss, a scalar."""

    def plain_loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The same without what smooths labels: the loss of the metrics."""

    def record(self, outputs: Any, targets: Tensor) -> Tensor:
        """What the metrics of an epoch need of a batch, (B, …), detached, on the device."""

    def metrics(self, records: Tensor, labels: Tensor) -> dict[str, float]:
        """The metrics of an epoch of training from its records; `loss` is one of them."""

    def evaluate(self, network: Network, split: DeviceSplit) -> dict[str, float]:
        """The metrics of a split in eval mode; `loss` and the configuration's `selection` are among them."""

    def of_each(self, network: Network, split: DeviceSplit) -> dict[str, Tensor]:
        """What the network makes of each image of a split in eval mode, (N,) each: metrics whose mean over the images is that
        of `evaluate`, by their names, and what else tells of an image.
        """

    def check(self) -> None:
        """Refuse settings with which `evaluate_last` could not measure what it should.

        Raises:
            UserError: says which.
        """

    def evaluate_last(
        self,
        network: Network,
        split: DeviceSplit,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        pause: Callable[[], None],
    ) -> dict[str, float]:
        """Metrics that are too costly for every epoch: of the test split after the last one, and of `icpctl eval`.

        What takes long is told to `say`; what is missing or not to be trusted, and why, to `warn`. `pause` is called
        between pieces of the work, and may raise to stop it.
        """


def build(config: RunConfig, images: ImageData, samples: int | None = None) -> tuple[Task, ImageData]:
    """The task of a run, and its data with the classes that the task needs.

    Args:
        samples: how many images a generative model draws for FID and KID; None: as many as it is compared with.

    Raises:
        UserError: the data do not fit the task.
    """
    # Imported here, as each needs a library that the other does not.
    if config.task == "generation":
        from icpctl.tasks.generation import Generation

        return Generation(config, samples), images.without_classes()

    from icpctl.tasks.classification import Classification

    if len(images.classes) < 2:
        raise UserError(
            f"The data set {images.name} has one class, '{images.classes[0]}'. A classifier needs two or more; "
            "the model vae needs none."
        )
    robustness = config.seed if config.robustness else None
    return Classification(len(images.classes), config.label_smoothing, robustness), images
