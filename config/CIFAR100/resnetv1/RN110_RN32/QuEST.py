"""QuEST, ResNet-110 -> ResNet-32, CIFAR-100. Published: 74.08. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="CIFAR100", teacher="resnet110", student="resnet32")
