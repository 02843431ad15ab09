"""letKD-1, ResNet-14 -> ResNet-8, handwritten digits."""

from config.recipes import DIGITS_PAIR, letkd1

config = letkd1(**DIGITS_PAIR)
