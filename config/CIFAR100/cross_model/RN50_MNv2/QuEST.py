"""QuEST, ResNet-50 -> MobileNetV2, CIFAR-100. Published: 69.81. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="CIFAR100", teacher="resnet50", student="mobilenetv2")
