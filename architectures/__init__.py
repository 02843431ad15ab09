"""Image classifiers by name, each telling where its feature maps can be taken.

    model = create_model("resnet20", num_classes=100)
    logits = model(images)                                # = forward_head(forward_features(images))
    model.penultimate, model.intermediate, model.stages   # maps inside it, by module path
    nn.Sequential(Input(mean, std), model)                # takes pixels
    outline(model, image_size=32).place("stage2")         # the same and more, with their sizes

Every module of this package is imported here, so a family joins by adding one file that calls `register_model`.
"""

import importlib
import pkgutil

from architectures.folding import fold_batch_norm_
from architectures.input import Input
from architectures.outline import Outline, Place, outline
from architectures.registry import create_model, is_model, list_models, register_model
from architectures.tapped import StageEnd, Tap, TappedNetwork

__all__ = [
    "Input",
    "Outline",
    "Place",
    "StageEnd",
    "Tap",
    "TappedNetwork",
    "create_model",
    "fold_batch_norm_",
    "is_model",
    "list_models",
    "outline",
    "register_model",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
