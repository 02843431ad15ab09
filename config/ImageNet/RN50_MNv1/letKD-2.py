"""letKD-2, ResNet-50 -> MobileNet v1, ImageNet. Published: 73.98 top-1, 92.00 top-5. Ours: not measured yet."""

from config.ImageNet.RN50_MNv1 import pair
from config.recipes import letkd2

config = letkd2(**pair)
