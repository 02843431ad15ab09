"""QuEST, ResNet-20 -> ResNet-8, your own images."""

from config.ImageFolder.RN20_RN8 import pair
from config.recipes import quest

config = quest(**pair)
