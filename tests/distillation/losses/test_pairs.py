"""Losses on maps and vectors between networks of different families, by their tables of stages."""

import pytest
import torch
from loss_tools import DATA, FILES, batch

from architectures import Input, create_model, outline
from distillation.losses import find_loss, list_losses
from distillation.objective import Objective, Teacher, union
from distillation.signals import Network

# Teacher and student, and the losses that do not take them: FSP wants equal widths, OFD a BatchNorm of all channels of
# a stage, which ShuffleNetV2 does not have.
PAIRS = [
    ("wrn_16_1", "shufflenetv1", ("fsp",)),
    ("vgg8", "mobilenetv2", ("fsp",)),
    ("shufflenetv2", "resnet8", ("fsp", "ofd")),
]


def network(name):
    module = create_model(name, num_classes=10)
    return Network(module, outline(module, 32, name))


@pytest.mark.parametrize(("teacher_name", "student_name", "refused"), PAIRS)
def test_a_step_teaches_every_parameter(teacher_name, student_name, refused):
    torch.manual_seed(0)
    pixels = Input((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    student, teacher = network(student_name), network(teacher_name)
    losses, weights = {}, {}
    for cls in (cls for cls in map(find_loss, list_losses()) if set(cls.prepared) <= set(FILES)):
        options = {field.name: field.default for field in cls.options()}
        options |= {name: FILES[name](teacher) for name in cls.prepared}
        if cls.key in refused:
            with pytest.raises(ValueError, match=teacher_name):
                cls.build(student, teacher, DATA, **options)
            continue
        losses[cls.key] = cls.build(student, teacher, DATA, **options)
        weights |= {cls.term_name(term): weight for term, weight in cls.terms.items()}
    wanted = union(loss.needs.teacher for loss in losses.values())
    objective = Objective(student, pixels, losses, weights, Teacher(teacher.reading(wanted), pixels, "test"))
    objective.on_epoch(2, 240)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    step = objective(batch(torch.arange(4))._replace(images=images))
    step.loss.backward()
    assert list(step.terms) == list(weights)
    assert all(term.isfinite() and term > 0 for term in step.terms.values())
    assert all(parameter.grad is not None for parameter in objective.parameters())
