"""ShuffleNetV1 alone, CIFAR-100. Published: 70.50. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="shufflenetv1")
