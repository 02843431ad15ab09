"""letKD-2, WRN-40-2 -> WRN-16-2, CIFAR-100. Published: 76.56 +- 0.22 (5 runs). Ours: not measured yet."""

from config.CIFAR100.WRN.WRN40w2_WRN16w2 import pair
from config.recipes import letkd2

config = letkd2(**pair)
