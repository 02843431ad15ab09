"""QuEST, WRN-40-2 -> ShuffleNetV1, CIFAR-100. Published: 76.75. Ours: not measured yet."""

from config.recipes import quest

config = quest(dataset="CIFAR100", teacher="wrn_40_2", student="shufflenetv1")
