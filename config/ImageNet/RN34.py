"""ResNet-34 alone, ImageNet. Published: 73.31 top-1, 91.42 top-5. Ours: not measured yet."""

from config.recipes import IMAGENET_PROTOCOL, classification

config = classification(network="torchvision/resnet34", **IMAGENET_PROTOCOL)
