"""ResNet-32x4 -> ResNet-8x4, CIFAR-100: what all methods of the pair share."""

pair = {"dataset": "CIFAR100", "teacher": "resnet32x4", "student": "resnet8x4"}
