"""ResNet-50 -> MobileNetV2, Tiny-ImageNet: what all methods of the pair share."""

pair = {"dataset": "TinyImageNet", "teacher": "resnet50", "student": "mobilenetv2"}
