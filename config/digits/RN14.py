"""ResNet-14 alone on handwritten digits, the teacher of the smallest pair."""

from config.recipes import classification

config = classification(dataset="digits", network="resnet14", epochs=12, milestones=(8, 11))
