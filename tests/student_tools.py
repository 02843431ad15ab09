"""A small network with KD layers, and images for it."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from letkd import Student, attach

IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
FEWER = IMAGES[:5]


def network(num_blocks: int = 2) -> nn.Sequential:
    def block(channels: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(OrderedDict(stage=nn.Sequential(block(3), block(4))[:num_blocks], head=head))


class Named(nn.Module):
    """A network whose input has a name of its own."""

    def __init__(self):
        super().__init__()
        self.net = network(num_blocks=1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels)


def student_of(backbone: nn.Module, paths: list[str]) -> Student:
    """With statistics and values as training makes them."""
    torch.manual_seed(0)
    student = attach(backbone, dict.fromkeys(paths, 6), images=IMAGES)
    student(IMAGES)
    return student.eval()
