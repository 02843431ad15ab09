"""ResNet-8 alone on two-digit numbers: the demonstration's student without a teacher."""

from config.recipes import NUMBERS_PROTOCOL, classification

config = classification(network="resnet8", **NUMBERS_PROTOCOL)
