"""letKD-1, ResNet-50 -> MobileNet v1, ImageNet. Published: 73.78 top-1, 91.81 top-5. Ours: not measured yet."""

from config.ImageNet.RN50_MNv1 import pair
from config.recipes import letkd1

config = letkd1(**pair)
