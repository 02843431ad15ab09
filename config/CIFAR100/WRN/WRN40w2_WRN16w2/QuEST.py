"""QuEST, WRN-40-2 -> WRN-16-2, CIFAR-100. Published: 76.10. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="CIFAR100", teacher="wrn_40_2", student="wrn_16_2")
