"""FitNet with supervised KD layers, RN110 -> RN32, CIFAR-100. Published: 73.36. Ours: not measured yet."""

from config.recipes import fitnet

config = fitnet(
    dataset="CIFAR100", teacher="resnet110", student="resnet32", penultimate=True, intermediate=True, supervised=True
)
