"""letKD-1, ResNet-56 -> ResNet-20, CIFAR-100/10k."""

from config.CIFAR100_10k.resnetv1.RN56_RN20 import pair
from config.recipes import letkd1

config = letkd1(**pair)
