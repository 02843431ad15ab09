"""QuEST, WRN-40-2 -> WRN-40-1, Tiny-ImageNet. Published: 59.13. Ours: not measured yet."""

from config.recipes import quest
from config.TinyImageNet.WRN.WRN40w2_WRN40w1 import pair

config = quest(**pair)
