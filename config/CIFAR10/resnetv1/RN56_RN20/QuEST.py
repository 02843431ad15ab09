"""QuEST, ResNet-56 -> ResNet-20, CIFAR-10. Not in the paper; the CIFAR-100 protocol."""

from config.recipes import quest

config = quest(dataset="CIFAR10", teacher="resnet56", student="resnet20", teacher_experiment="CIFAR10.resnetv1.RN56")
