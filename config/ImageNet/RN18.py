"""ResNet-18 alone, ImageNet. Published: 69.75 top-1, 89.07 top-5. Ours: not measured yet."""

from config.recipes import IMAGENET_PROTOCOL, classification

config = classification(network="torchvision/resnet18", **IMAGENET_PROTOCOL)
