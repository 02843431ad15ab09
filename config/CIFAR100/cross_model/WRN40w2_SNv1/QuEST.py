"""QuEST, WRN-40-2 -> ShuffleNetV1, CIFAR-100. Published: 76.75. Ours: not measured yet."""

from config.CIFAR100.cross_model.WRN40w2_SNv1 import pair
from config.recipes import quest

config = quest(**pair)
