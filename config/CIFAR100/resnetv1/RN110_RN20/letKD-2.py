"""letKD-2, ResNet-110 -> ResNet-20, CIFAR-100. Published: 73.38 +- 0.14 (5 runs). Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN110_RN20 import pair
from config.recipes import letkd2

config = letkd2(**pair)
