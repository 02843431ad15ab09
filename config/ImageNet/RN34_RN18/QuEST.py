"""QuEST, ResNet-34 -> ResNet-18, ImageNet. Published: 71.67 top-1, 90.67 top-5. Ours: not measured yet."""

from config.recipes import IMAGENET_PROTOCOL, quest

config = quest(
    teacher="torchvision/resnet34",
    student="torchvision/resnet18",
    teacher_experiment="ImageNet.RN34",
    **IMAGENET_PROTOCOL,
)
