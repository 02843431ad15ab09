"""ResNet-110 -> ResNet-20, CIFAR-100: what all methods of the pair share."""

pair = {"dataset": "CIFAR100", "teacher": "resnet110", "student": "resnet20"}
