"""letKD-1, ResNet-50 -> MobileNet v1, ImageNet. Published: 73.78 top-1, 91.81 top-5. Ours: not measured yet."""

from config.recipes import IMAGENET_PROTOCOL, letkd1

config = letkd1(
    teacher="torchvision/resnet50", student="mobilenetv1", teacher_experiment="ImageNet.RN50", **IMAGENET_PROTOCOL
)
