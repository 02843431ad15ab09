"""letKD-2, ResNet-34 -> ResNet-18, ImageNet. Published: 72.38 top-1, 91.15 top-5. Ours: not measured yet."""

from config.recipes import IMAGENET_PROTOCOL, letkd2

config = letkd2(
    teacher="torchvision/resnet34",
    student="torchvision/resnet18",
    teacher_experiment="ImageNet.RN34",
    **IMAGENET_PROTOCOL,
)
