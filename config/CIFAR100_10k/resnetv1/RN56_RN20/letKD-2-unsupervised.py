"""letKD-2's layers without the teacher, ResNet-56 -> ResNet-20, CIFAR-100/10k: what the layers alone give."""

from config.CIFAR100_10k.resnetv1.RN56_RN20 import pair
from config.recipes import letkd2

config = letkd2(**pair, quest_loss_coef=0.0, sub_loss_coef=0.0)
