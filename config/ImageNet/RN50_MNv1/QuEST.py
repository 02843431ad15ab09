"""QuEST, ResNet-50 -> MobileNet v1, ImageNet. Published: 72.54 top-1, 91.13 top-5. Ours: not measured yet."""

from config.ImageNet.RN50_MNv1 import pair
from config.recipes import quest

config = quest(**pair)
