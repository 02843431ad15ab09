"""letKD-2, ResNet-14 -> ResNet-8, handwritten digits."""

from config.recipes import DIGITS_PAIR, letkd2

config = letkd2(**DIGITS_PAIR)
