"""QuEST, ResNet-14 -> ResNet-8, handwritten digits."""

from config.recipes import DIGITS_PAIR, quest

config = quest(**DIGITS_PAIR)
