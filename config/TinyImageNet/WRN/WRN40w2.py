"""WRN-40-2 alone, Tiny-ImageNet. Published: 61.26. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="TinyImageNet", network="wrn_40_2")
