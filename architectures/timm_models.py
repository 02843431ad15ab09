"""Networks of timm, `timm/NAME`, with its state-dict names; no weights are downloaded.

NAME may have the tag of its weights (resnet10t.c3_in1k), which makes no other network. One that has a fixed image size,
like a vision transformer or Swin, is built for the size of the images.
"""

from typing import Any

from torch import nn

from architectures.registry import register_library, unknown_name


@register_library("timm")
def create(name: str, *, num_classes: int, image_size: int | None = None, **options: Any) -> nn.Module:
    """A network of timm.

    Raises:
        ValueError: timm is not installed, or has no such network.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError(
            f"timm/{name} needs timm; install it: python -m pip install -r requirements-networks.txt"
        ) from error
    if not timm.is_model(name):
        known = (f"timm/{each}" for each in timm.list_models())
        raise ValueError(unknown_name(f"timm/{name}", known, listed="what timm.list_models() lists"))
    fixed = timm.get_pretrained_cfg(name.partition(".")[0])
    if image_size is not None and fixed is not None and fixed.fixed_input_size:
        options = {"img_size": image_size} | options
    return timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
