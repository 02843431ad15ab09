"""ResNet-110 -> ResNet-32, CIFAR-100: what all methods of the pair share."""

pair = {"dataset": "CIFAR100", "teacher": "resnet110", "student": "resnet32"}
