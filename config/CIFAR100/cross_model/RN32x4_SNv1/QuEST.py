"""QuEST, ResNet-32x4 -> ShuffleNetV1, CIFAR-100. Published: 76.28. Ours: not measured yet."""

from config.CIFAR100.cross_model.RN32x4_SNv1 import pair
from config.recipes import quest

config = quest(**pair)
