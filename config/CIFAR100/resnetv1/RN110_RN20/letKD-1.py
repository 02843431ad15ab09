"""letKD-1, ResNet-110 -> ResNet-20, CIFAR-100. Published: 72.68 +- 0.31 (5 runs). Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN110_RN20 import pair
from config.recipes import letkd1

config = letkd1(**pair)
