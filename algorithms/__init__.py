"""Jobs on experiments: train, evaluate, make a codebook, decision scores, class means."""

from algorithms.base import Algorithm
from algorithms.class_means import ClassMeans
from algorithms.cluster import Queue
from algorithms.commands import command_for
from algorithms.evaluate import Evaluation
from algorithms.export import Export
from algorithms.jobs import check_method, check_run, make_algorithm
from algorithms.kmeans import KMeansCodebook
from algorithms.layers import LayerFigures
from algorithms.lda import LDAScores
from algorithms.options import check_options
from algorithms.predict import Prediction, prediction_table
from algorithms.prepare import Preparation, Step
from algorithms.probe import LinearProbe
from algorithms.run import provide, run_config, run_job
from algorithms.study import run_study
from algorithms.study_plan import Study
from algorithms.train import Training
from algorithms.trials import run_trials, wanted_seeds
from engine.records import set_up_console
from results.places import OutdatedError, Requirement, output_directory

__all__ = [
    "Algorithm",
    "ClassMeans",
    "Evaluation",
    "Export",
    "KMeansCodebook",
    "LDAScores",
    "LayerFigures",
    "LinearProbe",
    "OutdatedError",
    "Prediction",
    "Preparation",
    "Queue",
    "Requirement",
    "Step",
    "Study",
    "Training",
    "check_method",
    "check_options",
    "check_run",
    "command_for",
    "make_algorithm",
    "output_directory",
    "prediction_table",
    "provide",
    "run_config",
    "run_job",
    "run_study",
    "run_trials",
    "set_up_console",
    "wanted_seeds",
]
