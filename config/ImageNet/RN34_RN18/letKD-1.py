"""letKD-1, ResNet-34 -> ResNet-18, ImageNet. Published: 72.33 top-1, 91.06 top-5. Ours: not measured yet."""

from config.recipes import IMAGENET_PROTOCOL, letkd1

config = letkd1(
    teacher="torchvision/resnet34",
    student="torchvision/resnet18",
    teacher_experiment="ImageNet.RN34",
    **IMAGENET_PROTOCOL,
)
