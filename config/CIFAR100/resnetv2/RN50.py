"""ResNet-50 alone, CIFAR-100. Published: 79.34. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="resnet50")
