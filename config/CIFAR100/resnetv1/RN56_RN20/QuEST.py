"""QuEST, ResNet-56 -> ResNet-20, CIFAR-100. Published: 71.84. Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN56_RN20 import pair
from config.recipes import quest

config = quest(**pair)
