"""letKD-1, ResNet-20 -> ResNet-8, your own images."""

from config.ImageFolder.RN20_RN8 import pair
from config.recipes import letkd1

config = letkd1(**pair)
