"""MobileNet of width 1 for ImageNet (Howard et al., 2017, table 1).

Named as in the PyTorch checkpoints in use (`model.I.J`, `fc`).
"""

from torch import nn

from architectures.layers import conv_bn_relu, init_convolutions_
from architectures.registry import register_model
from architectures.tapped import StageEnd, Tap, TappedNetwork

STEM_CHANNELS, STEM_STRIDE = 32, 2
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))  # channels, blocks, stride of the first
NUM_EARLY_STAGES = 1  # at the resolution of the stem; not in the published lists of four stages, as of ImageNet ResNets


class MobileNetV1(TappedNetwork):
    """A strided stem and thirteen depthwise-separable blocks; `model.I` is feature child I."""

    feature_children = tuple(f"model.{index}" for index in range(1 + sum(depth for _, depth, _ in STAGES)))
    head_path = "fc"

    def __init__(self, *, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        in_channels, reduction = STEM_CHANNELS, STEM_STRIDE
        ends = [StageEnd("model.0", "model.0.2", "model.0.1")]
        blocks, taps = [nn.Sequential(*conv_bn_relu(3, in_channels, 3, STEM_STRIDE))], []
        for channels, depth, stride in STAGES:
            reduction *= stride
            taps.append(Tap(f"model.{len(blocks)}", channels, reduction))
            blocks.append(_separable_block(in_channels, channels, stride))
            blocks += [_separable_block(channels, channels, 1) for _ in range(depth - 1)]
            in_channels, last = channels, f"model.{len(blocks) - 1}"
            ends.append(StageEnd(last, f"{last}.5", f"{last}.4"))
        self.model = nn.Sequential(*blocks)
        self.fc = nn.Linear(in_channels, num_classes)
        self.first_blocks = tuple(taps)
        self.stage_ends = (ends[0], *ends[1 + NUM_EARLY_STAGES :])
        init_convolutions_(self)


def _separable_block(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    depthwise = conv_bn_relu(in_channels, in_channels, 3, stride, groups=in_channels)
    return nn.Sequential(*depthwise, *conv_bn_relu(in_channels, channels, 1))


register_model(MobileNetV1, name="mobilenetv1")
