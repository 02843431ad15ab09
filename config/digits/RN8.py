"""ResNet-8 alone on handwritten digits: the demonstration's student without a teacher."""

from config.recipes import classification

config = classification(dataset="digits", network="resnet8", epochs=8, milestones=(5, 7))
