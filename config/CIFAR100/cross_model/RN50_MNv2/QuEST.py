"""QuEST, ResNet-50 -> MobileNetV2, CIFAR-100. Published: 69.81. Ours: not measured yet."""

from config.CIFAR100.cross_model.RN50_MNv2 import pair
from config.recipes import quest

config = quest(**pair)
