"""WRN-16-2 alone, CIFAR-100. Published: 73.26. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="wrn_16_2")
