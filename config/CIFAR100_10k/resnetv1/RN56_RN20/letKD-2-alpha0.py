"""letKD-2 whose layers learn and add nothing to the maps, ResNet-56 -> ResNet-20, CIFAR-100/10k."""

from config.CIFAR100_10k.resnetv1.RN56_RN20 import pair
from config.recipes import letkd2

config = letkd2(**pair, alpha_penultimate=0.0, alpha_intermediate=0.0)
