"""WRN-40-1 alone, CIFAR-100. Published: 71.98. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="wrn_40_1")
