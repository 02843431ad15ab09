"""Networks of timm, `timm/NAME`, with its state-dict names; no weights are downloaded.

NAME may have the tag of its weights (resnet10t.c3_in1k), which makes no other network. One that has a fixed image size,
like a vision transformer or Swin, is built for the size of the images.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from architectures.published import Published, State, in_torch_hub, register_published
from architectures.registry import NEAREST, register_library, renamed, unknown_name

RATES = {"dropout": "drop_rate", "drop_path": "drop_path_rate"}  # as timm calls them


def names() -> list[str]:
    """Of all networks; none where timm is not installed, or not as it should be."""
    try:
        import timm
    except ImportError:
        return []
    return timm.list_models()


@register_library("timm", names)
def create(name: str, *, num_classes: int, image_size: int | None = None, **options: Any) -> nn.Module:
    """A network of timm.

    Raises:
        ValueError: timm is not installed, or has no such network.
    """
    timm = _timm(name)
    fixed = timm.get_pretrained_cfg(name.partition(".")[0])
    if image_size is not None and fixed is not None and fixed.fixed_input_size:
        options = {"img_size": image_size} | options
    return timm.create_model(name, pretrained=False, num_classes=num_classes, **renamed(options, RATES))


@register_published("timm")
def published(name: str) -> Published:
    """The weights of a network's tag, or of its first; timm brings their names and shapes to those of its network.

    Raises:
        ValueError: as `create`, or there is no such tag.
    """
    timm = _timm(name)
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(f"timm/{each}" for each in timm.list_pretrained(f"{name.partition('.')[0]}.*")) or "none"
        raise ValueError(f"no weights timm/{name}; there are: {tags}") from error
    if cfg is None:
        return Published((), {}, "")

    def translated(state: State) -> State:
        overlay = {"state_dict": dict(state), "source": "", "file": None}
        with torch.random.fork_rng(devices=[]):
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()

    return Published(
        files=tuple(_files(cfg)),
        trained_with={
            "image_size": cfg.input_size[-1],
            "mean": list(cfg.mean),
            "std": list(cfg.std),
            "interpolation": cfg.interpolation,
        },
        get=f"""python -c "import timm; timm.create_model('{name}', pretrained=True)\"""",
        translated=translated,
    )


def _files(cfg: Any) -> list[Path]:
    """Files on the disk, in the cache of Hugging Face and in torch's."""
    from huggingface_hub import try_to_load_from_cache

    found = []
    if cfg.hf_hub_id:
        repository, _, revision = cfg.hf_hub_id.partition("@")
        usual = cfg.hf_hub_filename or "pytorch_model.bin"
        names = dict.fromkeys((usual.replace("pytorch_model.bin", "model.safetensors"), usual))
        cached = (try_to_load_from_cache(repository, each, revision=revision or None) for each in names)
        found += [Path(path) for path in cached if isinstance(path, str)]
    if isinstance(cfg.url, str) and cfg.url:
        found.append(in_torch_hub(cfg.url))
    return [path for path in found if path.is_file()]


def _timm(name: str) -> ModuleType:
    """timm, which has a network of this name.

    Raises:
        ValueError: it is not installed, or has not.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError(
            f"timm/{name} needs timm; install it: python -m pip install -r requirements-networks.txt"
        ) from error
    if not timm.is_model(name):
        known = (f"timm/{each}" for each in timm.list_models())
        raise ValueError(unknown_name(f"timm/{name}", known, nearest=NEAREST, listed="what timm.list_models() lists"))
    return timm
