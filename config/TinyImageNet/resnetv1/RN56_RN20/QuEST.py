"""QuEST, ResNet-56 -> ResNet-20, Tiny-ImageNet. Published: 54.53. Ours: not measured yet."""

from config.recipes import quest
from config.TinyImageNet.resnetv1.RN56_RN20 import pair

config = quest(**pair)
