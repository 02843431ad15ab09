"""letKD-1, ResNet-20 -> ResNet-8, your own images."""

from config.recipes import letkd1

config = letkd1(dataset="ImageFolder", teacher="resnet20", student="resnet8", teacher_experiment="ImageFolder.RN20")
