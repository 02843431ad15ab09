"""letKD-2, ResNet-56 -> ResNet-20, Tiny-ImageNet. Published: 57.35 +- 0.46 (3 runs). Ours: not measured yet."""

from config.recipes import letkd2
from config.TinyImageNet.resnetv1.RN56_RN20 import pair

config = letkd2(**pair)
