"""QuEST, ResNet-110 -> ResNet-32, CIFAR-100. Published: 74.08. Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN110_RN32 import pair
from config.recipes import quest

config = quest(**pair)
