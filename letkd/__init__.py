"""The method: a knowledge-distillation layer that lets the student decide (Gorgun, Gurbuz, Alatan, BMVC 2023).

Needs torch and numpy only, and nothing else of this project.
"""

from letkd.codebook import Codebook
from letkd.decisions import decision_matrix, fit_subclasses
from letkd.kmeans import KMeans
from letkd.layer import KDLayer, TemplateScores, kd_layer
from letkd.lda import LDA
from letkd.losses import kl_to_scores
from letkd.patches import pool_map, to_map, to_patches
from letkd.student import Student, attach
from letkd.subclasses import SubclassTargets
from letkd.supervision import MapSupervision, Supervision, load_supervision, make_supervision
from letkd.taps import FrozenTaps

__all__ = [
    "LDA",
    "Codebook",
    "FrozenTaps",
    "KDLayer",
    "KMeans",
    "MapSupervision",
    "Student",
    "SubclassTargets",
    "Supervision",
    "TemplateScores",
    "attach",
    "decision_matrix",
    "fit_subclasses",
    "kd_layer",
    "kl_to_scores",
    "load_supervision",
    "make_supervision",
    "pool_map",
    "to_map",
    "to_patches",
]
