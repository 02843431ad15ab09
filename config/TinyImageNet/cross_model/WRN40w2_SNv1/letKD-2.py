"""letKD-2, WRN-40-2 -> ShuffleNetV1, Tiny-ImageNet. Published: 66.15 +- 0.50 (3 runs). Ours: not measured yet."""

from config.recipes import letkd2

config = letkd2(dataset="TinyImageNet", teacher="wrn_40_2", student="shufflenetv1")
