"""FitNet, ResNet-110 -> ResNet-32, CIFAR-100. Published: 71.59 (capacity control). Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN110_RN32 import pair
from config.recipes import fitnet

config = fitnet(**pair)
