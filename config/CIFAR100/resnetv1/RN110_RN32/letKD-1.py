"""letKD-1, ResNet-110 -> ResNet-32, CIFAR-100. Published: 74.40 +- 0.14 (5 runs). Ours: not measured yet."""

from config.recipes import letkd1

config = letkd1(dataset="CIFAR100", teacher="resnet110", student="resnet32")
