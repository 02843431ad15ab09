"""QuEST, ResNet-110 -> ResNet-20, CIFAR-100. Published: 71.89. Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN110_RN20 import pair
from config.recipes import quest

config = quest(**pair)
