"""QuEST, ResNet-32x4 -> ResNet-8x4, CIFAR-100. Published: 75.88. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="CIFAR100", teacher="resnet32x4", student="resnet8x4")
