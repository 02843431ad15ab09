"""letKD-1, ResNet-32x4 -> ShuffleNetV2, CIFAR-100. Published: 77.75 +- 0.17 (5 runs). Ours: not measured yet."""

from config.CIFAR100.cross_model.RN32x4_SNv2 import pair
from config.recipes import letkd1

config = letkd1(**pair)
