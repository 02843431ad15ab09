"""ResNet-14 -> ResNet-8, handwritten digits: what all methods of the pair share."""

from config.recipes import DIGITS_PAIR as pair

__all__ = ["pair"]
