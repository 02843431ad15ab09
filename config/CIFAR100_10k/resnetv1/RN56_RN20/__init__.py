"""ResNet-56 -> ResNet-20, CIFAR-100/10k: what all methods of the pair share. Give the teacher: teacher_weights=FILE."""

from config.recipes import CIFAR100_10K_PROTOCOL

pair = {"teacher": "resnet56", "student": "resnet20", "num_words": 512, **CIFAR100_10K_PROTOCOL}
