"""letKD-2, ResNet-32x4 -> ResNet-8x4, CIFAR-100. Published: 77.09 +- 0.18 (5 runs). Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN32x4_RN8x4 import pair
from config.recipes import letkd2

config = letkd2(**pair)
