"""letKD-1, ResNet-32x4 -> ShuffleNetV1, CIFAR-100. Published: 76.65 +- 0.24 (5 runs). Ours: not measured yet."""

from config.CIFAR100.cross_model.RN32x4_SNv1 import pair
from config.recipes import letkd1

config = letkd1(**pair)
