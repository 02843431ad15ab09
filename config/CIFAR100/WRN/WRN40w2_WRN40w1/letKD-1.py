"""letKD-1, WRN-40-2 -> WRN-40-1, CIFAR-100. Published: 75.01 +- 0.09 (5 runs). Ours: not measured yet."""

from config.CIFAR100.WRN.WRN40w2_WRN40w1 import pair
from config.recipes import letkd1

config = letkd1(**pair)
