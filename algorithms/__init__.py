"""Jobs on experiments: train, evaluate, make a codebook, make decision scores."""

from algorithms.base import Algorithm, OutdatedError, Requirement, output_directory
from algorithms.codebook import KMeansCodebook
from algorithms.decision_scores import LDAScores
from algorithms.evaluation import Evaluation
from algorithms.export import Export
from algorithms.linear_probe import LinearProbe
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
    "output_directory",
    "prediction_table",
    "run_trials",
    "set_up_console",
    "wanted_seeds",
]
