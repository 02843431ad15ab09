"""letKD-2, ResNet-34 -> ResNet-18, ImageNet. Published: 72.38 top-1, 91.15 top-5. Ours: not measured yet."""

from config.ImageNet.RN34_RN18 import pair
from config.recipes import letkd2

config = letkd2(**pair)
