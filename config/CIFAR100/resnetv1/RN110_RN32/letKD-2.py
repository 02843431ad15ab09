"""letKD-2, ResNet-110 -> ResNet-32, CIFAR-100. Published: 74.62 +- 0.20 (5 runs). Ours: not measured yet."""

from config.recipes import letkd2

config = letkd2(dataset="CIFAR100", teacher="resnet110", student="resnet32")
