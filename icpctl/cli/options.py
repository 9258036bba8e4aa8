"""The options of `train` and `ablate`: one for every hyper-parameter, made from its declaration.

The command line imports this when a command is called, so that its list of commands comes without pydantic.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from icpctl.cli.help import HelpAll
from icpctl.config import (
    FOLDER,
    GROUPS,
    HUGGING_FACE,
    POSITIONAL,
    RunConfig,
    choices,
    declaration,
    default_text,
    option,
)
from icpctl.config.recipes import CIFAR_RESNETS, MODELS, default_layers
from icpctl.config.settings import read_toml
from icpctl.errors import UserError

RARELY_GIVEN = ("stack", "jobs_per_gpu", "retries", "address", "slurm")


def with_hyperparameters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the arguments MODEL and DATASET and an option for every hyper-parameter.

    The command gets what the configuration file and the command line say as `settings`, unresolved.
    """
    own = inspect.signature(command).parameters
    hints = get_type_hints(command, include_extras=True)
    parameters = [own[name].replace(annotation=hints[name]) for name in own if name != "settings"]
    parameters += [_parameter(name) for name in RunConfig.model_fields]
    parameters.append(
        inspect.Parameter("help_all", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=HelpAll)
    )

    @functools.wraps(command)
    def wrapper(config: Path | None, help_all: bool, **given: Any) -> None:
        chosen = {name: given.pop(name) for name in RunConfig.model_fields}
        if chosen["model"]:
            _check_order(chosen["model"], chosen["dataset"] or "")
        settings = read_toml(config) if config else {}
        settings |= {name: value for name, value in chosen.items() if value is not None}
        command(settings=settings, **given)

    del wrapper.__wrapped__  # the signature is this one
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def _check_order(model: str, dataset: str) -> None:
    """Refuse a data set in the place of the model, or a model in that of the data set."""
    swapped_model, swapped_dataset = not _is_model(model) and _is_dataset(model), _is_model(dataset)
    if swapped_model or swapped_dataset:
        fault = f"{model} is a data set" if swapped_model else f"{dataset} is a model"
        example = f"{dataset if swapped_dataset else 'resnet20'} {model if swapped_model else 'digits'}"
        raise UserError(f"{fault}; the order is {' '.join(map(option, POSITIONAL))}, for example {example}.")


def _is_model(name: str) -> bool:
    """Whether a name is that of a model, or begins like one, as far as can be told at once."""
    return name in MODELS or bool(default_layers(name))


def _is_dataset(name: str) -> bool:
    from icpctl.data import DATASETS

    return name in DATASETS or name.startswith((FOLDER, HUGGING_FACE))


def common(parameters: Iterable[str]) -> list[str]:
    """The parameters that the short help of a command shows: its own, but for rare ones, and the settings that are often given."""
    return [
        name
        for name in parameters
        if (declaration(name).common if name in RunConfig.model_fields else name not in RARELY_GIVEN)
    ]


def _parameter(name: str) -> inspect.Parameter:
    field = RunConfig.model_fields[name]
    listed = f" One of: {', '.join(choices(name))}." if choices(name) else ""
    common: dict[str, Any] = {"help": f"{field.description}{listed}", "show_default": default_text(name) or False}
    kind: Any = str
    made: Any
    if name in POSITIONAL:
        made = typer.Argument(**common, autocompletion=_models if name == "model" else _datasets)
    elif field.annotation is bool:
        kind = bool
        made = typer.Option(f"{option(name)}/--no-{option(name)[2:]}", rich_help_panel=_panel(name), **common)
    else:
        common |= {"rich_help_panel": _panel(name), "metavar": _metavar(name)}
        made = typer.Option(option(name), autocompletion=_starting_with(choices(name)), **common)
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Annotated[kind | None, made]
    )


def _panel(name: str) -> str:
    return GROUPS[declaration(name).group]


def _metavar(name: str) -> str:
    annotation = str(RunConfig.model_fields[name].annotation)
    words = {"int": "INT", "float": "FLOAT", "Path": "PATH"}
    return "NAME" if choices(name) else next((words[word] for word in words if word in annotation), "TEXT")


def _starting_with(values: tuple[str, ...]) -> Callable[[str], list[str]]:
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def _models(incomplete: str) -> list[str]:
    return _starting_with((*CIFAR_RESNETS, "vae"))(incomplete)


def _datasets(incomplete: str) -> list[str]:
    from icpctl.data import DATASETS

    return _starting_with((*DATASETS, "folder:", "hf:"))(incomplete)
