"""letKD-1, ResNet-32x4 -> ResNet-8x4, CIFAR-100. Published: 76.70 +- 0.06 (5 runs). Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN32x4_RN8x4 import pair
from config.recipes import letkd1

config = letkd1(**pair)
