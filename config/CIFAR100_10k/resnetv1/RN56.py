"""ResNet-56 on CIFAR-100/10k: what its words and decisions are made from. Give its weights: weights=FILE."""

from config.recipes import CIFAR100_10K_PROTOCOL, classification

config = classification(network="resnet56", **CIFAR100_10K_PROTOCOL)
