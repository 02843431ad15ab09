"""QuEST, WRN-40-2 -> WRN-40-1, CIFAR-100. Published: 74.58. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="CIFAR100", teacher="wrn_40_2", student="wrn_40_1")
