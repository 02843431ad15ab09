"""letKD-2, WRN-40-2 -> WRN-40-1, Tiny-ImageNet. Published: 60.59 +- 0.27 (3 runs). Ours: not measured yet."""

from config.recipes import letkd2

config = letkd2(dataset="TinyImageNet", teacher="wrn_40_2", student="wrn_40_1")
