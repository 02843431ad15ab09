"""letKD-1, WRN-40-2 -> WRN-16-2, Tiny-ImageNet. Published: 61.42 +- 0.36 (3 runs). Ours: not measured yet."""

from config.recipes import letkd1

config = letkd1(dataset="TinyImageNet", teacher="wrn_40_2", student="wrn_16_2")
