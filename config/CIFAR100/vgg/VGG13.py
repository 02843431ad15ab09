"""VGG-13 alone, CIFAR-100; one of the published teachers. Published: 74.64. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="CIFAR100", network="vgg13")
