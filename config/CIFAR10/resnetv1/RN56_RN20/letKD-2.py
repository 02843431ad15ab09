"""letKD-2, ResNet-56 -> ResNet-20, CIFAR-10. Not in the paper; the CIFAR-100 protocol."""

from config.CIFAR10.resnetv1.RN56_RN20 import pair
from config.recipes import letkd2

config = letkd2(**pair)
