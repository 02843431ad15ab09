"""Jobs on experiments: train, evaluate, make a codebook, make decision scores."""

from algorithms import classification, letkd, quest  # noqa: F401  importing a method registers it
from algorithms.base import Algorithm, output_directory
from algorithms.codebook import KMeansCodebook
from algorithms.decision_scores import LDAScores
from algorithms.evaluation import Evaluation
from algorithms.methods import find_method, register_method
from algorithms.records import set_up_console
from algorithms.supervision import Requirement, missing_requirements
from algorithms.training import Training

__all__ = [
    "Algorithm",
    "Evaluation",
    "KMeansCodebook",
    "LDAScores",
    "Requirement",
    "Training",
    "find_method",
    "missing_requirements",
    "output_directory",
    "register_method",
    "set_up_console",
]
