"""QuEST, WRN-40-2 -> WRN-40-1, Tiny-ImageNet. Published: 59.13. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="TinyImageNet", teacher="wrn_40_2", student="wrn_40_1")
