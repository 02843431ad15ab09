"""QuEST, ResNet-14 -> ResNet-8, handwritten digits."""

from config.recipes import quest

config = quest(
    dataset="digits",
    teacher="resnet14",
    student="resnet8",
    teacher_experiment="digits.RN14",
    num_words=128,
    epochs=8,
    milestones=(5, 7),
)
