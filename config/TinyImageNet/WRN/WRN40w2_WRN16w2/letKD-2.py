"""letKD-2, WRN-40-2 -> WRN-16-2, Tiny-ImageNet. Published: 62.21 +- 0.17 (3 runs). Ours: not measured yet."""

from config.recipes import letkd2
from config.TinyImageNet.WRN.WRN40w2_WRN16w2 import pair

config = letkd2(**pair)
