"""Which job a configuration asks for."""

from algorithms.base import Algorithm, Config
from algorithms.class_means import ClassMeans
from algorithms.evaluate import Evaluation
from algorithms.export import Export
from algorithms.features import OfflineAlgorithm
from algorithms.kmeans import KMeansCodebook
from algorithms.lda import LDAScores
from algorithms.options import check_options
from algorithms.probe import LinearProbe
from algorithms.teaching import of_the_teacher
from algorithms.train import Training
from config.experiments import ENTRY_OPTIONS, check_name, load_experiment
from config.updates import check_command
from distillation.expressions import ALONE, canonical

# By the option that asks for it; where none is set it is Training.
JOBS = {
    "evaluate": Evaluation, "export": Export, "probe": LinearProbe, "kmeans": KMeansCodebook, "LDA": LDAScores,
    "class_means": ClassMeans,
}  # fmt: skip


def find_job(config: Config) -> type[Algorithm]:
    """The job that a configuration asks for.

    Raises:
        ValueError: it asks for several, or an option is not for it.
    """
    check_method(config)
    wanted = [option for option in JOBS if config[option]]
    if len(wanted) > 1:
        raise ValueError(f"{' and '.join(wanted)} are different jobs; run one at a time")
    check_command(wanted[0] if wanted else "train", config)
    return JOBS[wanted[0]] if wanted else Training


def make_algorithm(config: Config) -> Algorithm:
    """The job that a configuration asks for; `kmeans`, `LDA` and `class_means` of a pair are those of its teacher.

    Raises:
        FileNotFoundError: the weights of the teacher that a pair names are not there.
        ValueError: as `find_job`.
    """
    job = find_job(config)
    is_of_teacher = issubclass(job, OfflineAlgorithm) and config["method"] != ALONE
    return job(of_the_teacher(config, ENTRY_OPTIONS) if is_of_teacher else config)


def check_run(config: Config) -> None:
    """Refuse options that cannot work, alone or with others.

    Raises:
        ValueError: names the first.
    """
    check_options(config)
    check_name(config)
    find_job(config)


def check_method(config: Config) -> None:
    """Refuse `method=` with another method than the experiment's; letKD-1 and letKD-2 differ in other options alone.

    Raises:
        ValueError: names the method and the experiment.
    """
    own = load_experiment(config["config"])["method"]
    if config["method"] == own:
        return
    one, other = (canonical(method).replace("letKD-1", "letKD-2") for method in (config["method"], own))
    if one != other:
        raise ValueError(f"method={config['method']} does not fit {config['config']}; choose its experiment, config=")
