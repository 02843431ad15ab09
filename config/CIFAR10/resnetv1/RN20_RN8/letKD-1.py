"""letKD-1, ResNet-20 -> ResNet-8, CIFAR-10. Not in the paper; the CIFAR-100 protocol."""

from config.recipes import letkd1

config = letkd1(dataset="CIFAR10", teacher="resnet20", student="resnet8", teacher_experiment="CIFAR10.resnetv1.RN20")
