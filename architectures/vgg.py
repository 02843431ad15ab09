"""VGG with BatchNorm for small images (Simonyan & Zisserman, ICLR 2015): five blocks of 3x3 convolutions.

Three 2x2 poolings whatever the image size. The published networks add a fourth before `block4` for 64 x 64 images only.
"""

from functools import partial

from torch import nn

from architectures.layers import init_convolutions_, init_linear_
from architectures.registry import register_model
from architectures.tapped import StageEnd, Tap, TappedNetwork

WIDTHS = (64, 128, 256, 512, 512)
NUM_POOLINGS = 3  # after the first blocks


class VGG(TappedNetwork):
    """`convs_per_block` convolutions in each of five stages, whose taps follow the first convolution's ReLU."""

    feature_children = ("block0", "pool0", "block1", "pool1", "block2", "pool2", "block3", "block4")
    head_path = "classifier"

    def __init__(self, convs_per_block: int, *, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        in_channels, reduction, taps, ends = 3, 1, [], []
        for index, channels in enumerate(WIDTHS):
            layers = _conv_bn_relu(in_channels, channels)
            for _ in range(convs_per_block - 1):
                layers += _conv_bn_relu(channels, channels)
            self.add_module(f"block{index}", nn.Sequential(*layers))
            taps.append(Tap(f"block{index}.2", channels, reduction))
            last = len(layers) - 1  # block0 counts as the stem
            ends.append(StageEnd(f"block{index}", f"block{index}.{last}", f"block{index}.{last - 1}"))
            if index < NUM_POOLINGS:
                self.add_module(f"pool{index}", nn.MaxPool2d(2))
                reduction *= 2
            in_channels = channels
        self.classifier = nn.Linear(in_channels, num_classes)
        self.first_blocks = tuple(taps)
        self.stage_ends = tuple(ends)
        init_convolutions_(self)
        init_linear_(self.classifier)


def _conv_bn_relu(in_channels: int, channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


register_model(partial(VGG, 1), name="vgg8")
register_model(partial(VGG, 2), name="vgg13")
