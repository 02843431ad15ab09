"""MobileNetV2 alone, CIFAR-100. Published: 64.60. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="mobilenetv2")
