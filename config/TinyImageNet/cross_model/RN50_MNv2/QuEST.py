"""QuEST, ResNet-50 -> MobileNetV2, Tiny-ImageNet. Published: 59.81. Ours: not measured yet."""

from config.recipes import quest
from config.TinyImageNet.cross_model.RN50_MNv2 import pair

config = quest(**pair)
