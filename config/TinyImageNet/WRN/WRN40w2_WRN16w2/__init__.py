"""WRN-40-2 -> WRN-16-2, Tiny-ImageNet: what all methods of the pair share."""

pair = {"dataset": "TinyImageNet", "teacher": "wrn_40_2", "student": "wrn_16_2"}
