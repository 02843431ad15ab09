"""ResNet-32x4 alone, CIFAR-100. Published: 79.42. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="resnet32x4")
