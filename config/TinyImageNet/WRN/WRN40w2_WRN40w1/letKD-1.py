"""letKD-1, WRN-40-2 -> WRN-40-1, Tiny-ImageNet. Published: 59.75 +- 0.50 (3 runs). Ours: not measured yet."""

from config.recipes import letkd1

config = letkd1(dataset="TinyImageNet", teacher="wrn_40_2", student="wrn_40_1")
