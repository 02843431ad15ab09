"""ResNet-8 alone, CIFAR-10. Not in the paper; the CIFAR-100 protocol."""

from config.recipes import classification

config = classification(dataset="CIFAR10", network="resnet8")
