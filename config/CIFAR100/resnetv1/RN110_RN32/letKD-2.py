"""letKD-2, ResNet-110 -> ResNet-32, CIFAR-100. Published: 74.62 +- 0.20 (5 runs). Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN110_RN32 import pair
from config.recipes import letkd2

config = letkd2(**pair)
