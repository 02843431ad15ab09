"""QuEST, ResNet-50 -> MobileNetV2, Tiny-ImageNet. Published: 59.81. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="TinyImageNet", teacher="resnet50", student="mobilenetv2")
