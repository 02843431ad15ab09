"""ResNet-20 alone, Tiny-ImageNet. Published: 52.66. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="TinyImageNet", network="resnet20")
