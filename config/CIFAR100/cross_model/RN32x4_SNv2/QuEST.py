"""QuEST, ResNet-32x4 -> ShuffleNetV2, CIFAR-100. Published: 77.09. Ours: not measured yet."""

from config.CIFAR100.cross_model.RN32x4_SNv2 import pair
from config.recipes import quest

config = quest(**pair)
