"""QuEST, ResNet-14 -> ResNet-8, handwritten digits."""

from config.digits.RN14_RN8 import pair
from config.recipes import quest

config = quest(**pair)
