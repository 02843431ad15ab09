"""letKD-2, ResNet-32x4 -> ShuffleNetV1, CIFAR-100. Published: 77.30 +- 0.12 (5 runs). Ours: not measured yet."""

from config.CIFAR100.cross_model.RN32x4_SNv1 import pair
from config.recipes import letkd2

config = letkd2(**pair)
