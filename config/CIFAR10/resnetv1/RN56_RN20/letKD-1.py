"""letKD-1, ResNet-56 -> ResNet-20, CIFAR-10. Not in the paper; the CIFAR-100 protocol."""

from config.CIFAR10.resnetv1.RN56_RN20 import pair
from config.recipes import letkd1

config = letkd1(**pair)
