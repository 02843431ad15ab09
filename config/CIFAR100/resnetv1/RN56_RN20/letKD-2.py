"""letKD-2, ResNet-56 -> ResNet-20, CIFAR-100. Published: 73.27 +- 0.16 (5 runs). Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN56_RN20 import pair
from config.recipes import letkd2

config = letkd2(**pair)
