"""letKD-1, WRN-40-2 -> ShuffleNetV1, Tiny-ImageNet. Published: 65.70 +- 0.42 (3 runs). Ours: not measured yet."""

from config.recipes import letkd1

config = letkd1(dataset="TinyImageNet", teacher="wrn_40_2", student="shufflenetv1")
