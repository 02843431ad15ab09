"""Networks of torchvision, `torchvision/NAME`, with its state-dict names; no weights are downloaded.

The residual networks of the paper name their places themselves; those of all others are found. torchvision takes two
seconds to import, with what it imports: it is imported when a network of its is made.
"""

from functools import partial
from typing import Any

from torch import nn

from architectures.published import Published, in_torch_hub, register_published
from architectures.registry import NEAREST, register_library, register_model, renamed, unknown_name

# Networks that are built for one image size, by the beginnings of their names, and what they call it.
IMAGE_SIZE = {"vit_": lambda size: {"image_size": size}, "maxvit_": lambda size: {"input_size": (size, size)}}
WITHOUT_AUXILIARY = ("googlenet", "inception_v3")  # in training they return more than logits otherwise
RATES = {"drop_path": "stochastic_depth_prob"}  # as torchvision calls them


def residual(block: str, num_blocks: tuple[int, int, int, int], **options: Any) -> nn.Module:
    """A residual network of torchvision that names its places."""
    from architectures.torchvision_resnet import TorchvisionResNet, resnet

    return TorchvisionResNet(getattr(resnet, block), num_blocks, **options)


register_model(partial(residual, "BasicBlock", (2, 2, 2, 2)), name="torchvision/resnet18")
register_model(partial(residual, "BasicBlock", (3, 4, 6, 3)), name="torchvision/resnet34")
register_model(partial(residual, "Bottleneck", (3, 4, 6, 3)), name="torchvision/resnet50")


def names() -> list[str]:
    """Of all classifiers."""
    from torchvision import models

    return models.list_models(module=models)


@register_library("torchvision", names)
def create(name: str, *, num_classes: int, image_size: int | None = None, **options: Any) -> nn.Module:
    """A classifier of torchvision.

    Raises:
        ValueError: torchvision has no such network.
    """
    from torchvision import models

    _check_name(name)
    for beginning, sized in IMAGE_SIZE.items():
        if image_size is not None and name.startswith(beginning):
            options = sized(image_size) | options
    if name in WITHOUT_AUXILIARY:
        options = {"aux_logits": False, "init_weights": True} | options
    return models.get_model(name, weights=None, num_classes=num_classes, **renamed(options, RATES))


@register_published("torchvision")
def published(name: str) -> Published:
    """The weights of a network's tag, like resnet50.IMAGENET1K_V1, or its default ones.

    Raises:
        ValueError: as `create`, or there is no such tag.
    """
    from torchvision import models

    network, _, tag = name.partition(".")
    _check_name(network)
    known = models.get_model_weights(network)
    if tag and tag not in known.__members__:
        tags = ", ".join(f"torchvision/{network}.{each.name}" for each in known)
        raise ValueError(f"no weights torchvision/{name}; there are: {tags}")
    weights = known[tag] if tag else known.DEFAULT
    images = weights.transforms()
    path = in_torch_hub(weights.url)
    return Published(
        files=(path,) if path.is_file() else (),
        trained_with={
            "image_size": images.crop_size[0],
            "mean": list(images.mean),
            "std": list(images.std),
            "interpolation": images.interpolation.value,
        },
        get=f"curl --location --create-dirs --output {path} {weights.url}",
    )


def _check_name(name: str) -> None:
    if name not in names():
        known = (f"torchvision/{each}" for each in names())
        raise ValueError(unknown_name(f"torchvision/{name}", known, nearest=NEAREST))
