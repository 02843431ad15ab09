"""letKD-2, ResNet-56 -> ResNet-20, CIFAR-100. Published: 73.27 +- 0.16 (5 runs). Ours: not measured yet."""

from config.recipes import letkd2

config = letkd2(dataset="CIFAR100", teacher="resnet56", student="resnet20")
