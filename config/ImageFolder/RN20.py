"""ResNet-20 alone on your own images, `data_dir=<folder with train/ and val/ or test/>`."""

from config.recipes import classification

config = classification(dataset="ImageFolder", network="resnet20")
