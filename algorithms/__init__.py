"""Jobs on experiments: train, evaluate, make a codebook, make decision scores."""

from algorithms import classification, fitnet, letkd, quest  # noqa: F401  importing a method registers it
from algorithms.base import Algorithm, OutdatedError, Requirement, output_directory
from algorithms.codebook import KMeansCodebook
from algorithms.decision_scores import LDAScores
from algorithms.evaluation import Evaluation
from algorithms.export import Export
from algorithms.linear_probe import LinearProbe
from algorithms.methods import find_method, register_method
from algorithms.options import check_options
from algorithms.prediction import Prediction, prediction_table
from algorithms.preparation import Preparation, Step
from algorithms.records import set_up_console
from algorithms.training import Training
from algorithms.trials import run_trials, wanted_seeds

__all__ = [
    "Algorithm",
    "Evaluation",
    "Export",
    "KMeansCodebook",
    "LDAScores",
    "LinearProbe",
    "OutdatedError",
    "Prediction",
    "Preparation",
    "Requirement",
    "Step",
    "Training",
    "check_options",
    "find_method",
    "output_directory",
    "prediction_table",
    "register_method",
    "run_trials",
    "set_up_console",
    "wanted_seeds",
]
