"""WRN-40-1 alone, Tiny-ImageNet. Published: 56.25. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="TinyImageNet", network="wrn_40_1")
