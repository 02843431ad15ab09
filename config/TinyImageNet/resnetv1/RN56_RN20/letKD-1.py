"""letKD-1, ResNet-56 -> ResNet-20, Tiny-ImageNet. Published: 55.54 +- 0.33 (3 runs). Ours: not measured yet."""

from config.recipes import letkd1
from config.TinyImageNet.resnetv1.RN56_RN20 import pair

config = letkd1(**pair)
