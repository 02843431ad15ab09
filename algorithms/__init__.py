"""Jobs on experiments: train, evaluate, make a codebook, make decision scores."""

from algorithms import classification, fitnet, letkd, quest  # noqa: F401  importing a method registers it
from algorithms.base import Algorithm, OutdatedError, Requirement, output_directory
from algorithms.codebook import KMeansCodebook
from algorithms.decision_scores import LDAScores
from algorithms.evaluation import Evaluation
from algorithms.linear_probe import LinearProbe
from algorithms.methods import find_method, register_method
from algorithms.options import check_options
from algorithms.records import set_up_console
from algorithms.training import Training

__all__ = [
    "Algorithm",
    "Evaluation",
    "KMeansCodebook",
    "LDAScores",
    "LinearProbe",
    "OutdatedError",
    "Requirement",
    "Training",
    "check_options",
    "find_method",
    "output_directory",
    "register_method",
    "set_up_console",
]
