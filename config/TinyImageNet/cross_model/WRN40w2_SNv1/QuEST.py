"""QuEST, WRN-40-2 -> ShuffleNetV1, Tiny-ImageNet. Published: 65.23. Ours: not measured yet."""

from config.recipes import quest
from config.TinyImageNet.cross_model.WRN40w2_SNv1 import pair

config = quest(**pair)
