"""WRN-40-2 alone, CIFAR-100. Published: 75.61. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="wrn_40_2")
