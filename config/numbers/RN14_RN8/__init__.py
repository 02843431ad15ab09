"""ResNet-14 -> ResNet-8, two-digit numbers: what all methods of the pair share."""

from config.recipes import NUMBERS_PAIR as pair

__all__ = ["pair"]
