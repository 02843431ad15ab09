"""letKD-2, ResNet-20 -> ResNet-8, your own images."""

from config.ImageFolder.RN20_RN8 import pair
from config.recipes import letkd2

config = letkd2(**pair)
