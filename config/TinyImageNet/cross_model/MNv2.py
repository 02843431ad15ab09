"""MobileNetV2 alone, Tiny-ImageNet. Published: 58.35. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="TinyImageNet", network="mobilenetv2")
