"""QuEST, WRN-40-2 -> WRN-40-1, CIFAR-100. Published: 74.58. Ours: not measured yet."""

from config.CIFAR100.WRN.WRN40w2_WRN40w1 import pair
from config.recipes import quest

config = quest(**pair)
