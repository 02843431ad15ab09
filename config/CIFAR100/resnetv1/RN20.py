"""ResNet-20 alone, CIFAR-100. Published: 69.06. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="resnet20")
