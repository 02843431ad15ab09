"""ResNet-56 alone, Tiny-ImageNet. Published: 58.34. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="TinyImageNet", network="resnet56")
