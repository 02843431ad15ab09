"""FitNet with unsupervised KD layers, RN110 -> RN32, CIFAR-100. Published: 71.80. Ours: not measured yet."""

from config.CIFAR100.resnetv1.RN110_RN32 import pair
from config.recipes import fitnet

config = fitnet(**pair, penultimate=True, intermediate=True)
