"""letKD-2, WRN-40-2 -> WRN-16-2, Tiny-ImageNet. Published: 62.21 +- 0.17 (3 runs). Ours: not measured yet."""

from config.recipes import letkd2

config = letkd2(dataset="TinyImageNet", teacher="wrn_40_2", student="wrn_16_2")
