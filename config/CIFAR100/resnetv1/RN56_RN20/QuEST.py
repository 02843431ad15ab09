"""QuEST, ResNet-56 -> ResNet-20, CIFAR-100. Published: 71.84. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="CIFAR100", teacher="resnet56", student="resnet20")
