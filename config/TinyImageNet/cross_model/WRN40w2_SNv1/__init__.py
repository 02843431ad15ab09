"""WRN-40-2 -> ShuffleNetV1, Tiny-ImageNet: what all methods of the pair share."""

pair = {"dataset": "TinyImageNet", "teacher": "wrn_40_2", "student": "shufflenetv1"}
