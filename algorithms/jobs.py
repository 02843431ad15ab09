"""The door: which job a configuration asks for, a flat dictionary, which is options behind it."""

from dataclasses import asdict

from algorithms.base import Algorithm
from algorithms.class_means import ClassMeans
from algorithms.commands import network_alone
from algorithms.evaluate import Evaluation
from algorithms.export import Export
from algorithms.features import OfflineAlgorithm
from algorithms.kmeans import KMeansCodebook
from algorithms.layers import LayerFigures
from algorithms.lda import LDAScores
from algorithms.options import check_options
from algorithms.probe import LinearProbe
from algorithms.teaching import supervision_of, with_inputs
from algorithms.train import Training
from config.experiments import ENTRY_OPTIONS, check_name, load_experiment
from config.options import EMA, Config, Options
from config.recipes import classification
from config.updates import check_command
from distillation.expressions import ALONE, canonical, places_of
from distillation.inputs import TEACHER, handed_on
from distillation.places import pooling
from distillation.prepared import BY_WEIGHTS, images_for_teacher, means_home

# By the option that asks for it; where none is set it is Training.
JOBS = {
    "evaluate": Evaluation, "export": Export, "probe": LinearProbe, "layers": LayerFigures, "kmeans": KMeansCodebook,
    "LDA": LDAScores, "class_means": ClassMeans,
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
    """That job on its options; `kmeans`, `LDA` and `class_means` of a pair are those of its teacher.

    Raises:
        FileNotFoundError: the weights of the teacher that a pair names are not there.
        ValueError: as `find_job`.
    """
    job, options = find_job(config), Options.of(config)
    is_of_teacher = issubclass(job, OfflineAlgorithm) and options.experiment.method != ALONE
    return job(_of_the_teacher(options) if is_of_teacher else options)


def _of_the_teacher(options: Options) -> Options:
    """The options of `kmeans`, `LDA` or `class_means` on the teacher of a pair: those of the network alone.

    Raises:
        FileNotFoundError: the weights of the teacher are not there.
        ValueError: it has no weights of its own, or its supervision is that of an experiment that is no network alone,
            or of another network.
    """
    job, pair = options.job, options.pair
    if pair.teacher in (None, EMA):
        raise ValueError(
            f"{job.config} has no teacher that is trained before it, of which something could be made; choose a pair, "
            "or the experiment of a network alone"
        )
    options = with_inputs(options)
    supervision = supervision_of(options)
    if job.class_means:
        supervision = means_home(options.changed(supervision=supervision))
    given = {name: options.flat[name] for name in ENTRY_OPTIONS} | asdict(options.data)
    given |= asdict(options.subclasses) if options.subclasses else {}
    given |= handed_on(options, TEACHER) | images_for_teacher(options)
    given |= {"weights": pair.teacher_weights, "words_teacher_place": places_of(options, "words")[1]}
    if not job.class_means:
        given["downscale"] = pooling(options, "words" if job.kmeans else "decisions")
    if supervision.startswith(f"{BY_WEIGHTS}."):
        own = classification(network=pair.teacher, dataset=options.data.dataset)
        return Options.of(own | given | {"name": supervision})
    experiment, own = network_alone(supervision, options.run.localpath, pair.teacher)
    return Options.of(own | given | {"config": experiment, "name": own.get("name")})


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
