"""torchvision's residual networks, which name their places; imported where one is made, as torchvision is."""

from torchvision.models import resnet

from architectures.tapped import Tap, TappedNetwork, ends_of_blocks

STEM_REDUCTION = 4  # strided convolution and max pooling


class TorchvisionResNet(TappedNetwork, resnet.ResNet):
    """torchvision's modules called in the order of `feature_children`, max pooling counted: layer4 is child 7."""

    feature_children = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    head_path = "fc"

    def __init__(
        self,
        block: type[resnet.BasicBlock] | type[resnet.Bottleneck],
        num_blocks: tuple[int, int, int, int],
        *,
        num_classes: int,
        dropout: float = 0.0,
    ):
        super().__init__(block, list(num_blocks), num_classes=num_classes)
        self.dropout = dropout
        self.first_blocks = tuple(
            Tap(f"layer{1 + index}.0", width * block.expansion, STEM_REDUCTION * 2**index)
            for index, width in enumerate((64, 128, 256, 512))
        )
        # A block calls its `relu` two or three times; the last call is the one that ends it.
        self.stage_ends = ends_of_blocks(num_blocks, norm="bn2" if block is resnet.BasicBlock else "bn3")
