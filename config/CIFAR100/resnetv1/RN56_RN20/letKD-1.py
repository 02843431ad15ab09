"""letKD-1, ResNet-56 -> ResNet-20, CIFAR-100. Published: 72.44 +- 0.24 (5 runs). Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN56_RN20 import pair
from config.recipes import letkd1

config = letkd1(**pair)
