"""ResNet-50 with maps pooled 2x2: supervision for the students of half its resolution."""

from config.recipes import classification

config = classification(
    dataset="TinyImageNet", network="resnet50", downscale=2, trained_as="TinyImageNet.resnetv2.RN50"
)
