"""QuEST, ResNet-110 -> ResNet-20, CIFAR-100. Published: 71.89. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="CIFAR100", teacher="resnet110", student="resnet20")
