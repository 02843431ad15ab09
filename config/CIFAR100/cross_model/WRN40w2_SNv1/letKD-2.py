"""letKD-2, WRN-40-2 -> ShuffleNetV1, CIFAR-100. Published: 77.08 +- 0.12 (5 runs). Ours: not measured yet."""

from config.CIFAR100.cross_model.WRN40w2_SNv1 import pair
from config.recipes import letkd2

config = letkd2(**pair)
