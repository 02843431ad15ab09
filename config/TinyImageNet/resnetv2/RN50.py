"""ResNet-50 alone, Tiny-ImageNet. Published: 68.97. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="TinyImageNet", network="resnet50")
