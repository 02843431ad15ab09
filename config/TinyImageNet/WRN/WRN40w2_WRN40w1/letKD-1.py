"""letKD-1, WRN-40-2 -> WRN-40-1, Tiny-ImageNet. Published: 59.75 +- 0.50 (3 runs). Ours: not measured yet."""

from config.recipes import letkd1
from config.TinyImageNet.WRN.WRN40w2_WRN40w1 import pair

config = letkd1(**pair)
