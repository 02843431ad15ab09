"""ResNet-8 alone on handwritten digits, the student of the smallest pair without a teacher."""

from config.recipes import DIGITS_PROTOCOL, classification

config = classification(network="resnet8", **DIGITS_PROTOCOL)
