"""WRN-40-2 -> ShuffleNetV1, CIFAR-100: what all methods of the pair share."""

pair = {"dataset": "CIFAR100", "teacher": "wrn_40_2", "student": "shufflenetv1"}
