"""ResNet-34 -> ResNet-18, ImageNet: what all methods of the pair share."""

from config.recipes import IMAGENET_PROTOCOL

pair = {
    "teacher": "torchvision/resnet34",
    "student": "torchvision/resnet18",
    "teacher_experiment": "ImageNet.RN34",
    **IMAGENET_PROTOCOL,
}
