"""QuEST, WRN-40-2 -> WRN-16-2, Tiny-ImageNet. Published: 59.86. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="TinyImageNet", teacher="wrn_40_2", student="wrn_16_2")
