"""Defaults that depend on other settings: recipes, image sizes, stages; and what models and data sets declare.

This module imports neither torch nor the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "model_optimizer": "adamw",
        "lr": 3e-4,
        "weight_decay": 0.0,
        "lr_schedule": "constant",
        "batch_size": 32,
        "augmentation": "crop-randaugment",
        "clip_grad_norm": 5.0,
    },
    "strong": {
        "model_optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "lr_schedule": "cosine",
        "batch_size": 128,
        "augmentation": "pad-crop-flip",
        "clip_grad_norm": 0.0,
    },
}
# The modules whose outputs are a model's stages F_1 … F_L, by the beginning of the model's name.
# A family that is not listed needs --layers.
STAGES = {
    "alexnet": "features.2,features.5,features.12",
    "convnext": "features.1,features.3,features.5,features.7",
    "densenet": "features.denseblock1,features.denseblock2,features.denseblock3,features.denseblock4",
    "efficientnet": "features.2,features.3,features.5,features.7",
    "googlenet": "inception3b,inception4e,inception5b",
    "inception_v3": "Mixed_5d,Mixed_6e,Mixed_7c",
    "maxvit": "blocks.0,blocks.1,blocks.2,blocks.3",
    "mnasnet": "layers.8,layers.9,layers.11,layers.13",
    "mobilenet_v2": "features.3,features.6,features.13,features.17",
    "mobilenet_v3_large": "features.3,features.6,features.12,features.15",
    "mobilenet_v3_small": "features.1,features.3,features.8,features.11",
    "regnet": "trunk_output.block1,trunk_output.block2,trunk_output.block3,trunk_output.block4",
    "resnet": "layer1,layer2,layer3,layer4",
    "resnext": "layer1,layer2,layer3,layer4",
    "shufflenet": "stage2,stage3,stage4",
    "squeezenet": "features.4,features.7,features.12",
    "swin": "features.1,features.3,features.5,features.7",
    "vgg11": "features.2,features.5,features.10,features.15,features.20",
    "vgg13": "features.4,features.9,features.14,features.19,features.24",
    "vgg16": "features.4,features.9,features.16,features.23,features.30",
    "vgg19": "features.4,features.9,features.18,features.27,features.36",
    "vgg11_bn": "features.3,features.7,features.14,features.21,features.28",
    "vgg13_bn": "features.6,features.13,features.20,features.27,features.34",
    "vgg16_bn": "features.6,features.13,features.23,features.33,features.43",
    "vgg19_bn": "features.6,features.13,features.26,features.39,features.52",
    "vit": "encoder.layers.encoder_layer_2,encoder.layers.encoder_layer_5,"
    "encoder.layers.encoder_layer_8,encoder.layers.encoder_layer_11",
    "vit_l": "encoder.layers.encoder_layer_5,encoder.layers.encoder_layer_11,"
    "encoder.layers.encoder_layer_17,encoder.layers.encoder_layer_23",
    "vit_h": "encoder.layers.encoder_layer_7,encoder.layers.encoder_layer_15,"
    "encoder.layers.encoder_layer_23,encoder.layers.encoder_layer_31",
    "wide_resnet": "layer1,layer2,layer3,layer4",
}
CIFAR_RESNETS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}


VAE_SIZES = (16, 32, 64, 128, 256, 512, 1024)  # pixels
VAE_BOTTLENECK = 4  # pixels: the side down to which the VAE's encoder halves its images


@dataclass(frozen=True)
class ModelRow:
    """What a model declares beside its stages."""

    task: str = "classification"
    sizes: tuple[int, ...] = ()
    """The sides of images that it takes, in pixels; empty: any."""
    image_sizes: Mapping[str, int] = field(default_factory=dict)
    """The side by default for a data set; "" is for all others."""
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What differs from the recipes."""


@dataclass(frozen=True)
class DatasetRow:
    """What a data set declares."""

    image_size: int | None = None
    """The side by default, in pixels; none: as the images are."""
    boxes: bool = False
    """Whether its images have bounding boxes."""


MODELS = {
    "vae": ModelRow(
        task="generation",
        sizes=VAE_SIZES,
        image_sizes={"digits": 16, "cifar10": 32, "cifar100": 32, "fashion-mnist": 32, "": 64},
        recipes={  # it learns to draw what it is shown, so the images stay as they are
            "paper": {"augmentation": "none"},
            "strong": {"augmentation": "none", "model_optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0},
        },
    )
}
"""The models that declare something."""
DATASETS = {"cub": DatasetRow(image_size=64, boxes=True)}
"""The data sets that declare something."""


def model_row(model: str) -> ModelRow:
    """What a model declares."""
    return MODELS.get(model, ModelRow())


def dataset_row(dataset: str) -> DatasetRow:
    """What a data set declares."""
    return DATASETS.get(dataset, DatasetRow())


def vae_stages(image_size: int) -> int:
    """How many stages the VAE's encoder has, and its decoder."""
    return (image_size // VAE_BOTTLENECK).bit_length() - 1


def default_image_size(model: str, dataset: str) -> int | None:
    """The side to which images are resized where --image-size does not say otherwise; None leaves them as they are."""
    sizes = model_row(model).image_sizes
    return sizes.get(dataset, sizes[""]) if sizes else dataset_row(dataset).image_size


def default_layers(model: str, image_size: int | None = None) -> tuple[str, ...]:
    """The stages of a model by its name: the modules tapped where --layers does not say otherwise."""
    if model in CIFAR_RESNETS:
        return ("layer1", "layer2", "layer3")
    if model == "vae":
        stages = range(vae_stages(image_size or 0))
        return tuple(f"{half}.{stage}" for half in ("encoder", "decoder") for stage in stages)
    if not model.isidentifier():  # a model of timm, or the user's own, says itself which stages it has
        return ()
    families = [family for family in STAGES if model.startswith(family)]
    return tuple(STAGES[max(families, key=len)].split(",")) if families else ()


def recipe_default(name: str, recipe: str, model: str) -> Any:
    """What a recipe says of a hyper-parameter."""
    return model_row(model).recipes.get(recipe, {}).get(name, RECIPES[recipe][name])


def recipe_text(name: str) -> str:
    """The same in words, for every recipe and model."""

    def by_recipe(model: str) -> list[str]:
        return [str(recipe_default(name, recipe, model)) for recipe in RECIPES]

    text = "; strong: ".join(by_recipe(""))
    for model in MODELS:
        if by_recipe(model) != by_recipe(""):
            text += f" ({model}: {'; strong: '.join(dict.fromkeys(by_recipe(model)))})"
    return text
