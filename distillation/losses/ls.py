"""Label smoothing, without a teacher.

    L = -mean_B mean_N log softmax(z_BN),    z the student's logits

(1 - e) CE + e L is the cross-entropy with labels of which e is given to all N classes alike. The method alone has the
paper's e = 0.1, 0.9 CE + 0.1 L. In a sum CE has the weight 1, unless `ce.weight=0.9` says so. It is a part of a label:
images without one do not count.
"""

from torch import Tensor

from dataloaders import Batch
from distillation.losses.base import Loss, Needs, Paper, mean_of_labelled, register_loss
from distillation.signals import Signals, Wanted


@register_loss("LS")
class LS(Loss):
    """Cross-entropy with all classes alike."""

    paper = Paper(
        "Szegedy, Vanhoucke, Ioffe, Shlens, Wojna",
        "Rethinking the Inception Architecture for Computer Vision",
        "CVPR",
        2016,
    )
    kind = "teacher-free"
    terms = {"ls": 0.1}
    ce = 0.9
    needs_teacher = False
    labels = "any"

    def __init__(self) -> None:
        super().__init__()
        self.needs = Needs(student=Wanted(logits=True))

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        log_p_BN = student.logits.log_softmax(dim=1)
        if batch.labelled is not None:
            return {"ls": -mean_of_labelled(log_p_BN.mean(dim=1), batch)}
        return {"ls": -log_p_BN.mean()}
