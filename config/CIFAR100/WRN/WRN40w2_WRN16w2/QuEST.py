"""QuEST, WRN-40-2 -> WRN-16-2, CIFAR-100. Published: 76.10. Ours: not measured yet."""

from config.CIFAR100.WRN.WRN40w2_WRN16w2 import pair
from config.recipes import quest

config = quest(**pair)
