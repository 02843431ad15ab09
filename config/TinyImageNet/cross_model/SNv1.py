"""ShuffleNetV1 alone, Tiny-ImageNet. Published: 60.52. Ours: not measured yet."""

from config.recipes import classification

config = classification(dataset="TinyImageNet", network="shufflenetv1")
