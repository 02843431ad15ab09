"""ResNet-50 alone, ImageNet. Published: 76.13 top-1, 92.86 top-5. Ours: not measured yet."""

from config.recipes import IMAGENET_PROTOCOL, classification

config = classification(network="torchvision/resnet50", **IMAGENET_PROTOCOL)
