"""FitNet with supervised KD layers, RN110 -> RN32, CIFAR-100. Published: 73.36. Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN110_RN32 import pair
from config.recipes import fitnet

config = fitnet(**pair, penultimate=True, intermediate=True, supervised=True)
