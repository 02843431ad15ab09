"""WRN-40-2 -> WRN-16-2, CIFAR-100: what all methods of the pair share."""

pair = {"dataset": "CIFAR100", "teacher": "wrn_40_2", "student": "wrn_16_2"}
