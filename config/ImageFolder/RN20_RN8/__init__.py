"""ResNet-20 -> ResNet-8, your own images: what all methods of the pair share."""

pair = {"dataset": "ImageFolder", "teacher": "resnet20", "student": "resnet8", "teacher_experiment": "ImageFolder.RN20"}
