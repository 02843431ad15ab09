"""QuEST, WRN-40-2 -> ShuffleNetV1, Tiny-ImageNet. Published: 65.23. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="TinyImageNet", teacher="wrn_40_2", student="shufflenetv1")
