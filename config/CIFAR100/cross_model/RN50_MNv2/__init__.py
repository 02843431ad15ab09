"""ResNet-50 -> MobileNetV2, CIFAR-100: what all methods of the pair share."""

pair = {"dataset": "CIFAR100", "teacher": "resnet50", "student": "mobilenetv2"}
