"""letKD-2, ResNet-20 -> ResNet-8, your own images."""

from config.recipes import letkd2

config = letkd2(dataset="ImageFolder", teacher="resnet20", student="resnet8", teacher_experiment="ImageFolder.RN20")
