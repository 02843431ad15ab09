"""Image classifiers by name, and where their feature maps can be taken.

    model = create_model("resnet20", num_classes=100)     # or "timm/NAME", "torchvision/NAME", "my.module:function"
    logits = model(images)
    outline(model, image_size=32).place("penultimate")    # maps inside it by name or module path, with their sizes
    nn.Sequential(Input(mean, std), model)                # takes pixels

Every module of this package but `LATE` is imported here, so a family joins by adding one file that calls
`register_model`. Other libraries are imported when a network of theirs is made.
"""

import importlib
import pkgutil

from architectures.folding import fold_batch_norm_
from architectures.input import Input, InputConfig
from architectures.outline import Outline, Place, outline
from architectures.registry import create_model, create_on_meta, is_model, list_models, register_model
from architectures.tapped import StageEnd, Tap, TappedNetwork

__all__ = [
    "Input",
    "InputConfig",
    "Outline",
    "Place",
    "StageEnd",
    "Tap",
    "TappedNetwork",
    "create_model",
    "create_on_meta",
    "fold_batch_norm_",
    "is_model",
    "list_models",
    "outline",
    "register_model",
]

LATE = {"torchvision_resnet"}  # what itself imports another library

for _module in pkgutil.iter_modules(__path__):
    if _module.name not in LATE:
        importlib.import_module(f"{__name__}.{_module.name}")
