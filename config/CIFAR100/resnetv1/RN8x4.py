"""ResNet-8x4 alone, CIFAR-100. Published: 72.50. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="resnet8x4")
