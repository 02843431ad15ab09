"""Sub-class decision targets from a frozen LDA space (letKD-2).

    z = (t - xbar) @ W                              LDA, first L components
    i = argmin_s ||z - rho_(y, s)||^2               nearest of the S centres of the image's own class y
    target = D[y * S + i]                           how the members of that sub-class fall on all N*S prototypes

Shapes: C channels of the teacher's intermediate map, L components, N classes, S sub-classes a class, P patches, G of
them in one image.
Only the image's own centres are compared, (B, S, L), never all N*S.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from letkd.checks import class_labels
from letkd.losses import SoftTargets, full_precision
from letkd.patches import to_patches


class SubclassTargets(nn.Module):
    """The frozen LDA projection, sub-class centres and decision matrix of a teacher.

    Args:
        scalings_CL: W; columns beyond the centres' L are dropped (the authors' files hold all of them).
        xbar_C: mean that LDA subtracts.
        centers_ML: rho, M = N*S rows ordered class by class.
        decisions_MM: D; rows are distributions.
        num_subclasses: S.
    """

    def __init__(
        self, scalings_CL: Tensor, xbar_C: Tensor, centers_ML: Tensor, decisions_MM: Tensor, *, num_subclasses: int
    ):
        super().__init__()
        channels, rows = xbar_C.shape[0], centers_ML.shape[0]
        num_components = centers_ML.shape[1]
        if scalings_CL.shape[0] != channels or scalings_CL.shape[1] < num_components:
            raise ValueError(
                f"LDA scalings {tuple(scalings_CL.shape)} do not fit xbar {tuple(xbar_C.shape)} "
                f"and centres {tuple(centers_ML.shape)}"
            )
        if decisions_MM.shape != (rows, rows) or rows % num_subclasses:
            raise ValueError(
                f"decision matrix {tuple(decisions_MM.shape)} and {rows} centres are not (N*S, N*S) and N*S "
                f"for S = {num_subclasses}"
            )
        scalings_CL = scalings_CL[:, :num_components]
        centers_NSL = centers_ML.detach().float().view(-1, num_subclasses, num_components).clone()
        decisions_MM = decisions_MM.detach().float().clone()
        frozen = {
            "weight": scalings_CL.T.detach().float().contiguous(),
            "offset": -(xbar_C @ scalings_CL).detach().float(),
            "centers": centers_NSL,
            "decisions": decisions_MM,
            "negative_entropy": -torch.special.entr(decisions_MM).sum(dim=1),
        }
        for name, tensor in frozen.items():
            self.register_buffer(name, tensor, persistent=False)  # decisions have a file of their own

    @property
    def num_targets(self) -> int:
        """N*S, the number of templates the student's layer needs."""
        return self.decisions.shape[0]

    @torch.no_grad()
    def assign(self, features_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Row of D for every patch, (P,): the nearest sub-class of the image's own class.

        Raises:
            ValueError: labels are not whole numbers (B,) from 0 to N - 1; on a GPU their values are asserted there.
        """
        labels_B = class_labels(labels_B, len(features_BCHW), len(self.centers))
        batch, num_subclasses = labels_B.shape[0], self.centers.shape[1]
        patches_PC = to_patches(features_BCHW).to(self.weight.dtype)
        own_BSL = self.centers[labels_B]
        bias_B1S = own_BSL.square().sum(dim=2).unsqueeze(1)
        with full_precision(patches_PC.device):
            projected_PL = torch.addmm(self.offset, patches_PC, self.weight.T)
            projected_BGL = projected_PL.view(batch, features_BCHW.shape[2:].numel(), projected_PL.shape[1])
            distances_BGS = torch.baddbmm(bias_B1S, projected_BGL, own_BSL.mT, alpha=-2)
        return (distances_BGS.argmin(dim=2) + labels_B[:, None] * num_subclasses).flatten()

    def targets(self, features_BCHW: Tensor, labels_B: Tensor) -> SoftTargets:
        """The decision targets of a teacher's map, as `kl_to_scores` takes them."""
        return _DecisionTargets(self, self.assign(features_BCHW.detach(), labels_B))


@dataclass(frozen=True)
class _DecisionTargets:
    subclasses: SubclassTargets
    index_P: Tensor

    def rows(self, chunk: slice) -> tuple[Tensor, Tensor]:
        index_R = self.index_P[chunk]
        return self.subclasses.decisions[index_R], self.subclasses.negative_entropy[index_R]
