"""QuEST, ResNet-50 -> MobileNet v1, ImageNet. Published: 72.54 top-1, 91.13 top-5. Ours: not measured yet."""

from config.recipes import IMAGENET_PROTOCOL, quest

config = quest(
    teacher="torchvision/resnet50", student="mobilenetv1", teacher_experiment="ImageNet.RN50", **IMAGENET_PROTOCOL
)
