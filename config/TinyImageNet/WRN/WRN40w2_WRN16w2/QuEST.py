"""QuEST, WRN-40-2 -> WRN-16-2, Tiny-ImageNet. Published: 59.86. Ours: not measured yet."""

from config.recipes import quest
from config.TinyImageNet.WRN.WRN40w2_WRN16w2 import pair

config = quest(**pair)
