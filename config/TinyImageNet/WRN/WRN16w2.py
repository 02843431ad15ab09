"""WRN-16-2 alone, Tiny-ImageNet. Published: 57.17. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="TinyImageNet", network="wrn_16_2")
