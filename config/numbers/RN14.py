"""ResNet-14 alone on two-digit numbers: the teacher of the demonstration."""

from config.recipes import classification

config = classification(dataset="numbers", network="resnet14", epochs=6, milestones=(4, 5), batch_size=32)
