"""ResNet-56 -> ResNet-20, Tiny-ImageNet: what all methods of the pair share."""

pair = {"dataset": "TinyImageNet", "teacher": "resnet56", "student": "resnet20"}
