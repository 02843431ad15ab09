"""letKD-2, ResNet-56 -> ResNet-20, CIFAR-100/10k."""

from config.CIFAR100_10k.resnetv1.RN56_RN20 import pair
from config.recipes import letkd2

config = letkd2(**pair)
