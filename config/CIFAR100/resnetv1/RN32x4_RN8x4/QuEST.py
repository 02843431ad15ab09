"""QuEST, ResNet-32x4 -> ResNet-8x4, CIFAR-100. Published: 75.88. Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN32x4_RN8x4 import pair
from config.recipes import quest

config = quest(**pair)
