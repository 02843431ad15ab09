"""FitNet with unsupervised KD layers, RN110 -> RN32, CIFAR-100. Published: 71.80. Ours: not measured yet."""

from config.recipes import fitnet

config = fitnet(dataset="CIFAR100", teacher="resnet110", student="resnet32", penultimate=True, intermediate=True)
