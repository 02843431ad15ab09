"""letKD-1, WRN-40-2 -> WRN-16-2, Tiny-ImageNet. Published: 61.42 +- 0.36 (3 runs). Ours: not measured yet."""

from config.recipes import letkd1
from config.TinyImageNet.WRN.WRN40w2_WRN16w2 import pair

config = letkd1(**pair)
