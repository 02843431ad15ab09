"""QuEST, ResNet-32x4 -> ShuffleNetV1, CIFAR-100. Published: 76.28. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="CIFAR100", teacher="resnet32x4", student="shufflenetv1")
