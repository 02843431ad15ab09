"""A network alone: cross-entropy. Trains teachers, and students without a teacher."""

import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.methods import Config, Step, register_method
from architectures import create_model


@register_method("classification")
class Classification(nn.Module):
    """Plain supervised training of `network`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict()

    @staticmethod
    def build_model(config: Config, num_classes: int) -> nn.Module:
        return create_model(config["network"], num_classes=num_classes)

    @classmethod
    def from_config(cls, config: Config, num_classes: int) -> "Classification":
        return cls(cls.build_model(config, num_classes))

    def forward(self, images: Tensor, labels: Tensor, *, with_statistics: bool = False) -> Step:
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        return Step(loss, logits, {"cls_loss": loss.detach()})
