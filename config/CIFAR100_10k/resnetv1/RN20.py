"""ResNet-20 alone, CIFAR-100/10k."""

from config.recipes import CIFAR100_10K_PROTOCOL, classification

config = classification(network="resnet20", **CIFAR100_10K_PROTOCOL)
