"""ResNet-50 -> MobileNet v1, ImageNet: what all methods of the pair share."""

from config.recipes import IMAGENET_PROTOCOL

pair = {
    "teacher": "torchvision/resnet50",
    "student": "mobilenetv1",
    "teacher_experiment": "ImageNet.RN50",
    **IMAGENET_PROTOCOL,
}
