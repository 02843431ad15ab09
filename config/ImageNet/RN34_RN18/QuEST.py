"""QuEST, ResNet-34 -> ResNet-18, ImageNet. Published: 71.67 top-1, 90.67 top-5. Ours: not measured yet."""

from config.ImageNet.RN34_RN18 import pair
from config.recipes import quest

config = quest(**pair)
