"""Similarity preservation.

    S(F) = rows of F_BD F_BD' of length 1, (B, B)       F_BD: the map of a sample, flattened, D = C * h * w
    L    = |S(F) - S(G)|^2 / B^2

F is the student's map at the end of the last stage, G the teacher's; they may differ in channels and grid. Published,
as in RepDistiller, for every pair: CE + 3000 L. The paper may take several stages; RepDistiller takes the last alone.

Each sample is compared with all of its batch: of a batch of one L is 0. B is far below D, so S is the small form, and a
product of matrices makes it without anything larger. A sample whose map is 0 everywhere (all its activations dead) has
a row of zeros, whose gradient the reference multiplies by 1e12; here it stays what it is.
"""

from torch import Tensor

from dataloaders import Batch
from distillation.losses.base import Data, Loss, Needs, Paper, register_loss
from distillation.losses.maps import stages_of, unit
from distillation.signals import Network, Signals, Wanted


@register_loss("SP")
class SP(Loss):
    """Squared error of the similarities inside a batch.

    Args:
        stage, teacher_stage: places of the maps.
    """

    paper = Paper("Tung, Mori", "Similarity-Preserving Knowledge Distillation", "ICCV", 2019)
    kind = "relations"
    terms = {"sp": 3000.0}
    labels = "none"

    def __init__(self, stage: str, teacher_stage: str):
        super().__init__()
        self.stage, self.teacher_stage = stage, teacher_stage
        self.needs = Needs(student=Wanted(maps=(stage,)), teacher=Wanted(maps=(teacher_stage,)), whole_batch=True)

    @classmethod
    def build(cls, student: Network, teacher: Network, data: Data) -> "SP":
        return cls(*(stages_of(cls.method, network)[-1] for network in (student, teacher)))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        one, other = similarities(student.maps[self.stage]), similarities(teacher.maps[self.teacher_stage])
        return {"sp": (one - other).square().mean()}


def similarities(map_BChw: Tensor) -> Tensor:
    """(B, B), every row of length 1."""
    flat_BD = map_BChw.float().flatten(1)
    return unit(flat_BD @ flat_BD.T)
