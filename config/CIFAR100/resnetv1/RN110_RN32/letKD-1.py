"""letKD-1, ResNet-110 -> ResNet-32, CIFAR-100. Published: 74.40 +- 0.14 (5 runs). Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN110_RN32 import pair
from config.recipes import letkd1

config = letkd1(**pair)
