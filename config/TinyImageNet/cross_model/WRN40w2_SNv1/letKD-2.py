"""letKD-2, WRN-40-2 -> ShuffleNetV1, Tiny-ImageNet. Published: 66.15 +- 0.50 (3 runs). Ours: not measured yet."""

from config.recipes import letkd2
from config.TinyImageNet.cross_model.WRN40w2_SNv1 import pair

config = letkd2(**pair)
