"""Jobs on experiments: train, evaluate, make a codebook, make decision scores."""

from algorithms.base import Algorithm
from algorithms.evaluate import Evaluation
from algorithms.export import Export
from algorithms.kmeans import KMeansCodebook
from algorithms.lda import LDAScores
from algorithms.options import check_options
from algorithms.predict import Prediction, prediction_table
from algorithms.prepare import Preparation, Step
from algorithms.probe import LinearProbe
from algorithms.teaching import of_the_teacher
from algorithms.train import Training
from algorithms.trials import run_trials, wanted_seeds
from engine.records import set_up_console
from results.places import OutdatedError, Requirement, output_directory

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
    "of_the_teacher",
    "output_directory",
    "prediction_table",
    "run_trials",
    "set_up_console",
    "wanted_seeds",
]
