"""WRN-40-2 -> WRN-40-1, Tiny-ImageNet: what all methods of the pair share."""

pair = {"dataset": "TinyImageNet", "teacher": "wrn_40_2", "student": "wrn_40_1"}
