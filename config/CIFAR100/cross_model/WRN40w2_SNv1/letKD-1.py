"""letKD-1, WRN-40-2 -> ShuffleNetV1, CIFAR-100. Published: 76.93 +- 0.16 (5 runs). Ours: not measured yet."""

from config.CIFAR100.cross_model.WRN40w2_SNv1 import pair
from config.recipes import letkd1

config = letkd1(**pair)
