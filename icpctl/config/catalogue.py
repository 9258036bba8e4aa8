"""The catalogue of methods: what the rest of the code needs to know about each. It imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from icpctl.config import RunConfig

T = TypeVar("T")

PLAIN_STEP = 3
"""Passes of a plain step: 1 forward, and 2 backward, for the gradients of the features and of the weights."""
PLAIN = "plain"
"""The baseline of every other method: the same training without it."""


class Live(Mapping[str, T]):
    """A mapping that follows from the rows of the catalogue. It is made anew at each look, as a row may be added at any time."""

    def __init__(self, make: Callable[[], Mapping[str, T]]) -> None:
        self._make = make

    def __getitem__(self, name: str) -> T:
        return self._make()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._make())

    def __len__(self) -> int:
        return len(self._make())


class Variant(NamedTuple):
    """How a method, or one of several that it has, is shown."""

    label: str
    colour: str
    marker: str


@dataclass(frozen=True)
class InputOptimizer:
    """An input optimizer of the perturbation, whose class `icpctl.methods.icp.perturbation.OPTIMIZERS` has under the same name."""

    variant: Variant
    arguments: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """The arguments of its class, and the settings of a run that they take. Settings of other input optimizers mean nothing with it."""
    has_state: bool = True
    """Whether a step depends on those before it, so that --icp-state means something."""
    normalises: bool = True
    """Whether a step is about as long as η, however small the gradient is."""

    @property
    def settings(self) -> list[str]:
        """The settings that it reads."""
        given = [(value,) if isinstance(value, str) else value for value in self.arguments.values()]
        return [*(name for names in given for name in names), *(["icp_state"] if self.has_state else [])]


class Control(NamedTuple):
    """What a method's claim has to be held against, beside plain training."""

    settings: Mapping[str, object]
    """In which the run differs from that of the method."""
    words: str
    """What it is to the method, in a sentence: "its …"."""
    name: str = ""
    """The same in the legend of a figure; empty for a run that is a method itself."""
    line: str = ""
    """In figures, as matplotlib has it."""
    filling: str = ""
    """Of its marker, as matplotlib has it."""


@dataclass(frozen=True)
class MethodRow:
    """One method.

    A forward pass of the network counts 1, a backward pass 1 for the gradients of the features and 1 for those of the weights.
    """

    label: str
    """Its name where its variants are pooled."""
    summary: str
    """One sentence, without its full stop."""
    variants: Mapping[str, Variant]
    """How it is shown, by its own name; or by `optimizer`, where that makes variants of it."""
    module: str
    """The class, as package.module:Class; a subclass of `icpctl.methods.base.Method`."""
    passes: Callable[[RunConfig], float] = lambda config: PLAIN_STEP
    """Passes of the network for a fresh image in a step with the method."""
    groups: tuple[str, ...] = ()
    """The groups of settings that mean something with it; those of other methods are put at their defaults."""
    tasks: tuple[str, ...] = ("classification", "generation")
    needs: str = ""
    """Why it cannot do the other task: "it …"."""
    companion: Literal["", "view", "class", "replay"] = ""
    """What comes with each image: nothing; a second view of it, which is augmented anew; another image of its class; or a second
    view of an image of the batch before."""
    sets: Mapping[str, object] = field(default_factory=dict)
    """Its own defaults of settings that every method has."""
    refuses: Mapping[str, str] = field(default_factory=dict)
    """Settings that every method has, but that make no sense with it, and why."""
    least_stages: int = 0
    """How many stages of the network it needs, by --layers."""
    measured: tuple[str, ...] = ()
    """Settings that are measured on the model where they are not given; see `icpctl.methods.base.Method.measure`."""
    controls: Mapping[str, Control] = field(default_factory=dict)
    """What --controls adds."""
    single_process: str = ""
    """Why several processes cannot train a run of it together; empty if they can."""
    captured: bool = False
    """Whether its step can be a CUDA graph: it does the same operations each time, on tensors at fixed places."""
    stacked: bool = False
    """Whether several runs can be trained together: `torch.vmap` can map its objective, and `update` is that of `Method`."""


INPUT_OPTIMIZERS: dict[str, InputOptimizer] = {
    "sgd": InputOptimizer(Variant("SGD-ICP", "#CC79A7", "s"), has_state=False, normalises=False),
    "adam": InputOptimizer(
        Variant("Adam-ICP", "#0072B2", "o"),
        {"betas": ("beta1", "beta2"), "eps": "eps"},
    ),
    "ademamix": InputOptimizer(
        Variant("AdEMAMix-ICP", "#D55E00", "D"),
        {
            "betas": ("beta1", "beta2", "beta3"),
            "eps": "eps",
            "alpha": "alpha",
            "weight_decay": "icp_weight_decay",
        },
    ),
}
"""In the order of tables and figures; each is a variant of ICP."""

SCHEDULE = "schedule"
"""The name of the control that has the falling weight of ICP's task loss, and nothing else of ICP."""
LABEL_SMOOTHING = "label-smoothing"
_SMOOTHED = {LABEL_SMOOTHING: Control({"method": LABEL_SMOOTHING}, "label smoothing")}
"""Soft targets alone, which is the control of every method that has them."""
_LABELS: dict[str, Any] = {"tasks": ("classification",), "needs": "it needs the labels of classes"}


def _icp_passes(config: RunConfig) -> int:
    """2·T for the perturbation, which needs no gradients of the weights, 1 for the teacher, 3 for the student.

    The eval-mode gradient of `extra_task_grad` is 3 more.
    """
    return 2 * config.steps + 1 + PLAIN_STEP + (PLAIN_STEP if config.extra_task_grad else 0)


METHODS: dict[str, MethodRow] = {
    PLAIN: MethodRow(
        "baseline",
        "Plain training: the task loss alone",
        {PLAIN: Variant("baseline", "#000000", "X")},
        "icpctl.methods.plain:Plain",
        captured=True,
        stacked=True,
    ),
    "icp": MethodRow(
        "ICP",
        "The features of a constructively perturbed input are targets for those of the original one (arXiv 2505.14751)",
        Live(lambda: {name: optimizer.variant for name, optimizer in INPUT_OPTIMIZERS.items()}),
        "icpctl.methods.icp.method:ICP",
        passes=_icp_passes,
        groups=("perturbation", "features", "distillation", "schedule"),
        controls={
            "ascend": Control({"direction": "ascend"}, "its ascending control", "its ascending control", "--", "none"),
            "random": Control(
                {"direction": "random"}, "its control in a random direction", "its random control", ":", "bottom"
            ),
            SCHEDULE: Control({"method": SCHEDULE}, "its schedule alone"),
        },
        captured=True,
        stacked=True,
    ),
    "two-views": MethodRow(
        "two views",
        "ICP's distillation with a second augmented view in the place of the perturbed input",
        {"two-views": Variant("two views", "#56B4E9", "v")},
        "icpctl.methods.two_views:TwoViews",
        passes=lambda config: PLAIN_STEP + 1,
        groups=("features", "distillation", "schedule"),
        companion="view",
        refuses={"mix": "two views would be mixed with two other images"},
    ),
    SCHEDULE: MethodRow(
        "schedule alone",
        "Plain training with ICP's falling weight of the task loss, and no feature loss",
        {SCHEDULE: Variant("schedule alone", "#999933", ".")},
        "icpctl.methods.icp.schedule:Schedule",
        groups=("schedule",),
        captured=True,
        stacked=True,
    ),
    LABEL_SMOOTHING: MethodRow(
        "label smoothing",
        "Plain training on labels that give every class a share (arXiv 1512.00567)",
        {LABEL_SMOOTHING: Variant("label smoothing", "#7F7F7F", "P")},
        "icpctl.methods.plain:Plain",
        sets={"label_smoothing": 0.1},
        captured=True,
        stacked=True,
        **_LABELS,
    ),
    "mixup": MethodRow(
        "mixup",
        "Plain training on weighted means of two images and of their labels (arXiv 1710.09412)",
        {"mixup": Variant("mixup", "#B8860B", "<")},
        "icpctl.methods.plain:Plain",
        sets={"mix": "mixup"},
        captured=True,
        stacked=True,
        **_LABELS,
    ),
    "cutmix": MethodRow(
        "CutMix",
        "Plain training on images that have a box of another one, and on both labels (arXiv 1905.04899)",
        {"cutmix": Variant("CutMix", "#8B4513", ">")},
        "icpctl.methods.plain:Plain",
        sets={"mix": "cutmix"},
        captured=True,
        stacked=True,
        **_LABELS,
    ),
    "ps-kd": MethodRow(
        "PS-KD",
        "The prediction of the epoch before is a growing part of an image's target (arXiv 2006.12000)",
        {"ps-kd": Variant("PS-KD", "#009E73", "^")},
        "icpctl.methods.ps_kd:PSKD",
        groups=("ps-kd",),
        refuses={
            "mix": "what is stored is the prediction of one image",
            "label_smoothing": "the targets are soft by themselves",
        },
        controls=_SMOOTHED,
        **_LABELS,
    ),
    "cs-kd": MethodRow(
        "CS-KD",
        "The prediction of another image of the class is a soft target (arXiv 2003.13964)",
        {"cs-kd": Variant("CS-KD", "#E69F00", "p")},
        "icpctl.methods.cs_kd:CSKD",
        passes=lambda config: PLAIN_STEP + 1,
        groups=("cs-kd",),
        companion="class",
        refuses={"mix": "the two images have to be of one class"},
        controls=_SMOOTHED,
        **_LABELS,
    ),
    "dlb": MethodRow(
        "DLB",
        "Each image is trained on twice, with its prediction in the batch before as a soft target (arXiv 2203.16172)",
        {"dlb": Variant("DLB", "#882255", "h")},
        "icpctl.methods.dlb:DLB",
        passes=lambda config: 2 * PLAIN_STEP,
        groups=("dlb",),
        companion="replay",
        refuses={"mix": "what is replayed is an image, not a mixed one"},
        controls=_SMOOTHED,
        **_LABELS,
    ),
    "ddgsd": MethodRow(
        "DDGSD",
        "Two augmented views of an image are soft targets for each other (arXiv 1901.05620)",
        {"ddgsd": Variant("DDGSD", "#44AA99", "d")},
        "icpctl.methods.ddgsd:DDGSD",
        passes=lambda config: 2 * PLAIN_STEP,
        groups=("features", "ddgsd"),
        companion="view",
        refuses={"mix": "two views would be mixed with two other images"},
        controls=_SMOOTHED,
        single_process="it compares means of the features of the whole batch",
        **_LABELS,
    ),
    "byot": MethodRow(
        "BYOT",
        "Classifiers on the stages, which learn from the last one (arXiv 1905.08094)",
        {"byot": Variant("BYOT", "#332288", "8")},
        "icpctl.methods.byot:BYOT",
        passes=lambda config: PLAIN_STEP * (1 + (config.byot_share or 0.0)),
        groups=("features", "byot"),
        least_stages=2,
        measured=("byot_share",),
        controls={
            "heads": Control(
                {"byot_alpha": 0.0, "byot_lambda": 0.0},
                "its heads without distillation",
                "its heads alone",
                "--",
                "none",
            ),
            **_SMOOTHED,
        },
        single_process="it has parameters beside the model's, which several processes do not share",
        **_LABELS,
    ),
    "sam": MethodRow(
        "SAM",
        "The gradient is taken at the weights a step uphill (sharpness-aware minimisation, arXiv 2010.01412)",
        {"sam": Variant("SAM", "#AA4499", "*")},
        "icpctl.methods.sam:SAM",
        passes=lambda config: 2 * PLAIN_STEP,
        groups=("sam",),
    ),
    "vat": MethodRow(
        "VAT",
        "The prediction is kept where a small perturbation changes it most (virtual adversarial training, arXiv 1704.03976)",
        {"vat": Variant("VAT", "#117733", "H")},
        "icpctl.methods.vat:VAT",
        passes=lambda config: 2 * PLAIN_STEP + 2,
        groups=("vat",),
        single_process="its random directions are drawn for the whole batch",
        **_LABELS,
    ),
}
"""In the order of tables and figures. The colours are of the palettes of Okabe and Ito, and of Tol."""


def variants() -> dict[str, Variant]:
    """How each method and variant is shown, in the order of tables and figures."""
    return {key: variant for row in METHODS.values() for key, variant in row.variants.items()}


def controls() -> dict[str, Control]:
    """The controls of all methods."""
    return {key: control for row in METHODS.values() for key, control in row.controls.items()}
