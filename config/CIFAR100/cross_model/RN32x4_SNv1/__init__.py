"""ResNet-32x4 -> ShuffleNetV1, CIFAR-100: what all methods of the pair share."""

pair = {"dataset": "CIFAR100", "teacher": "resnet32x4", "student": "shufflenetv1"}
