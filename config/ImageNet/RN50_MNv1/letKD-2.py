"""letKD-2, ResNet-50 -> MobileNet v1, ImageNet. Published: 73.98 top-1, 92.00 top-5. Ours: not measured yet."""

from config.recipes import IMAGENET_PROTOCOL, letkd2

config = letkd2(
    teacher="torchvision/resnet50", student="mobilenetv1", teacher_experiment="ImageNet.RN50", **IMAGENET_PROTOCOL
)
