"""ResNet-32 alone, CIFAR-100. Published: 71.14. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="resnet32")
