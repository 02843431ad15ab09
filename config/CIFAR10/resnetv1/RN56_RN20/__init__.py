"""ResNet-56 -> ResNet-20, CIFAR-10: what all methods of the pair share."""

pair = {
    "dataset": "CIFAR10",
    "teacher": "resnet56",
    "student": "resnet20",
    "teacher_experiment": "CIFAR10.resnetv1.RN56",
}
