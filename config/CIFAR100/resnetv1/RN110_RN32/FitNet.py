"""FitNet, ResNet-110 -> ResNet-32, CIFAR-100. Published: 71.59 (capacity control). Ours: not measured yet."""

from config.recipes import fitnet

config = fitnet(dataset="CIFAR100", teacher="resnet110", student="resnet32")
