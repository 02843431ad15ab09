"""letKD-1, WRN-40-2 -> ShuffleNetV1, Tiny-ImageNet. Published: 65.70 +- 0.42 (3 runs). Ours: not measured yet."""

from config.recipes import letkd1
from config.TinyImageNet.cross_model.WRN40w2_SNv1 import pair

config = letkd1(**pair)
