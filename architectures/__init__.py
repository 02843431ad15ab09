"""Image classifiers by name, each telling where its feature maps can be taken.

    model = create_model("resnet20", num_classes=100)
    logits = model(images)                                # = forward_head(forward_features(images))
    model.penultimate, model.intermediate, model.stages   # maps inside it, by module path

Every module of this package is imported here, so a family joins by adding one file that calls `register_model`.
"""

import importlib
import pkgutil

from architectures.folding import fold_batch_norm_
from architectures.registry import create_model, is_model, list_models, register_model
from architectures.tapped import Tap, TappedNetwork

__all__ = ["Tap", "TappedNetwork", "create_model", "fold_batch_norm_", "is_model", "list_models", "register_model"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
