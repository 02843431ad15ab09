"""ResNet-20 -> ResNet-8, CIFAR-10: what all methods of the pair share."""

pair = {
    "dataset": "CIFAR10",
    "teacher": "resnet20",
    "student": "resnet8",
    "teacher_experiment": "CIFAR10.resnetv1.RN20",
}
