"""letKD-2, WRN-40-2 -> WRN-40-1, Tiny-ImageNet. Published: 60.59 +- 0.27 (3 runs). Ours: not measured yet."""

from config.recipes import letkd2
from config.TinyImageNet.WRN.WRN40w2_WRN40w1 import pair

config = letkd2(**pair)
