"""letKD-2, WRN-40-2 -> WRN-40-1, CIFAR-100. Published: 75.19 +- 0.13 (5 runs). Ours: not measured yet."""

from config.CIFAR100.WRN.WRN40w2_WRN40w1 import pair
from config.recipes import letkd2

config = letkd2(**pair)
