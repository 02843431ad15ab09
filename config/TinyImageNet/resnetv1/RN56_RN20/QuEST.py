"""QuEST, ResNet-56 -> ResNet-20, Tiny-ImageNet. Published: 54.53. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="TinyImageNet", teacher="resnet56", student="resnet20")
