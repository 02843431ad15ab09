"""MobileNet v1 alone, ImageNet. Published: 68.87 top-1, 88.76 top-5. Ours: not measured yet."""

from config.recipes import IMAGENET_PROTOCOL, classification

config = classification(network="mobilenetv1", **IMAGENET_PROTOCOL)
