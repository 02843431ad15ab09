"""letKD-1, ResNet-34 -> ResNet-18, ImageNet. Published: 72.33 top-1, 91.06 top-5. Ours: not measured yet."""

from config.ImageNet.RN34_RN18 import pair
from config.recipes import letkd1

config = letkd1(**pair)
