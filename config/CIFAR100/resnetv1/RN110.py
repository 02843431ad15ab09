"""ResNet-110 alone, CIFAR-100. Published: 74.31. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="resnet110")
