"""letKD-1, ResNet-20 -> ResNet-8, CIFAR-10. Not in the paper; the CIFAR-100 protocol."""

from config.CIFAR10.resnetv1.RN20_RN8 import pair
from config.recipes import letkd1

config = letkd1(**pair)
