"""QuEST, ResNet-20 -> ResNet-8, your own images."""

from config.recipes import quest

config = quest(dataset="ImageFolder", teacher="resnet20", student="resnet8", teacher_experiment="ImageFolder.RN20")
