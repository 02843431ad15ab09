"""ShuffleNetV2 alone, CIFAR-100. Published: 71.82. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="shufflenetv2")
