"""Who imports whom, and the experiments: they agree with the published ones, build, and take a step."""

import ast
import functools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_tools import batch_of
from supervision_tools import made_up
from torch import nn

import main_classification
from algorithms import teaching
from architectures import Tap, TappedNetwork, create_model, create_on_meta, list_models
from config import recipes
from config.experiments import ENTRY_OPTIONS, list_experiments, load_experiment
from config.options import Options
from dataloaders import Dataset, ImageTensors, list_datasets
from distillation import supervision_files
from engine.optimization import make_optimizer
from engine.step import descend
from results.places import output_directory
from storage.state_dicts import Weights

ROOT = Path(main_classification.__file__).parent
MINE = "mine"  # config/mine/ belongs to whoever works here
EXPERIMENTS = [name for name in list_experiments() if name.partition(".")[0] != MINE]
CONFIGS = {name: load_experiment(name) for name in EXPERIMENTS}
ALONE = [name for name, config in CONFIGS.items() if config["method"] == "classification"]
PAIRS = [name for name in EXPERIMENTS if name not in ALONE]
PUBLISHED = json.loads((Path(__file__).parent / "golden" / "experiments.json").read_text())

# --- imports ---------------------------------------------------------------------------------------------------------

OURS = {"config", "letkd", "architectures", "dataloaders", "storage", "results", "engine", "distillation"}
OURS |= {"algorithms", "reporting", "main_classification", "download_cifar100_teacher"}
PROCESSES = "letkd.processes"  # the processes of a run: sums over them, and no method; every room may use it
BELOW = {"config", "letkd", "architectures", "dataloaders", "storage", "results"}
MAY_IMPORT = {
    "config": {"distillation", "storage"},  # distillation where a sum of methods is asked for
    "letkd": set(),
    "architectures": {"letkd"},  # how maps lie in what modules return
    "dataloaders": {"config", "storage"},  # what mean and std may be
    "storage": {"letkd"},  # the seal of tensor files, which the method needs where it stands alone
    "results": {"config", "storage"},  # config says what each option bears on
    "engine": BELOW - {"letkd"},
    "distillation": BELOW,
    "algorithms": BELOW | {"engine", "distillation", "download_cifar100_teacher"},  # which `prepare` runs
    "reporting": BELOW | {"engine", "distillation", "algorithms"},
    "examples": {"letkd"},
}
WITH_LETKD = {"features.py", "kmeans.py", "lda.py", "probe.py"}  # the jobs that are the paper's own


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports_of(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """All import statements of a file, wherever they stand."""
    return [node for node in ast.walk(parsed(path)) if isinstance(node, (ast.Import, ast.ImportFrom))]


def imported(path: Path) -> Iterator[str]:
    """Top-level packages that a file imports, anywhere in it; but for `PROCESSES`."""
    for node in imports_of(path):
        if isinstance(node, ast.ImportFrom) and node.module == PROCESSES:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        else:
            assert node.level == 0, f"{path} imports relatively"
            yield node.module.partition(".")[0]


def source_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_it_may(folder):
    files = source_files(folder)
    assert files
    allowed = MAY_IMPORT[folder] | {folder}
    assert {
        str(path): set(imported(path)) & OURS - allowed for path in files if set(imported(path)) & OURS - allowed
    } == {}


def imported_modules(path: Path) -> set[str]:
    """Modules that a file imports, and what it imports from them, by their whole names."""
    found = set()
    for node in imports_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_only_the_jobs_of_the_paper_know_its_method_and_no_job_knows_a_loss():
    for path in source_files("algorithms"):
        names = {name for name in imported_modules(path) if not f"{name}.".startswith(f"{PROCESSES}.")}
        assert not any(f"{name}.".startswith("distillation.losses.") for name in names), path
        assert path.name in WITH_LETKD or not any(f"{name}.".startswith("letkd.") for name in names), path


def test_the_engine_reads_options_and_no_experiment():
    for path in source_files("engine"):
        names = {name for name in imported_modules(path) if name.partition(".")[0] == "config"}
        assert all(name.startswith("config.options") for name in names), path


def test_a_loss_imports_no_other_method():
    """What losses share is in `base.py`, `logits.py` and `maps.py`."""
    for path in source_files("distillation/losses"):
        shared = {f"distillation.losses.{name}" for name in ("base", "logits", "maps")}
        others = {name for name in imported_modules(path) if name.startswith("distillation.losses.")}
        assert path.name == "__init__.py" or all(any(name.startswith(room) for room in shared) for name in others), path


def test_the_method_needs_torch_and_numpy_only():
    allowed = {"letkd", "torch", "numpy", "faiss"} | sys.stdlib_module_names
    assert {name for path in source_files("letkd") for name in imported(path)} <= allowed


# What an option bears on is said once, with the option: reading results needs these of config.
OF_STANDARD_LIBRARY = {
    "config.former_names",
    "config.options",
    "config.schema",
    "results.settings",
    "storage.documents",
}


@pytest.mark.parametrize("module", sorted(OF_STANDARD_LIBRARY))
def test_results_and_options_are_read_with_the_standard_library_alone(module):
    names = imported_modules(ROOT / f"{module.replace('.', '/')}.py")
    others = {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}
    assert all(name in OF_STANDARD_LIBRARY or name.rpartition(".")[0] in OF_STANDARD_LIBRARY for name in others)


# What takes a second and more to import, torchvision two with what it imports itself.
SLOW = {"torchvision", "sklearn", "scipy", "matplotlib", "timm"}
IMPORT_TORCHVISION = {"torchvision_resnet.py"}  # itself imported where it is needed


def test_what_takes_seconds_to_import_is_imported_where_it_is_needed():
    """Every command waits for what modules import as they are imported."""
    for path in (path for folder in MAY_IMPORT.keys() - {"examples"} for path in source_files(folder)):
        at_once = [node for node in parsed(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {getattr(node, "module", None) or node.names[0].name for node in at_once}
        assert path.name in IMPORT_TORCHVISION or not {name.partition(".")[0] for name in names} & SLOW, path


def test_only_the_entry_knows_sacred():
    places = [path for folder in MAY_IMPORT for path in source_files(folder)] + sorted(ROOT.glob("*.py"))
    assert [path.name for path in places if "sacred" in set(imported(path))] == ["main_classification.py"]


# --- options ---------------------------------------------------------------------------------------------------------

# Up to here options are what users write: one dictionary, of which the door makes options by groups.
DOOR = {f"algorithms/{name}.py" for name in ("commands", "jobs", "options", "run", "study", "study_plan")}
BEHIND_IT = ("algorithms", "engine", "distillation", "letkd", "architectures", "dataloaders", "reporting/pictures")
# Who reads the dictionary behind the door: what records it, compares it with records, or says it to users.
READS_IT = {
    "algorithms/base.py option": "a message names an option as the user gave it",
    "algorithms/base.py facts": "results.json records it",
    "algorithms/evaluate.py _changed": "it is compared with what the training has recorded",
    "algorithms/layers.py _changed": "it is compared with what the training has recorded",
    "algorithms/prepare.py earlier_seconds": "it is compared with the record of an earlier run",
    "algorithms/train.py run": "the entry compares it with what it was told",
    "algorithms/train.py _say_changes": "it is compared with the checkpoint's",
    "algorithms/train.py _state": "a checkpoint records it",
    "algorithms/trials.py check_alike": "it is compared with the records of trials",
    "algorithms/trials.py refuse_other_images": "it is compared with the records of trials",
    "distillation/expressions.py default_options": "it makes the dictionary of an experiment",
    "distillation/prepared.py _job": "a command repeats what is said of a pair",
    "engine/ranks.py open_group": "what the processes of a run were told is compared",
    "engine/resume.py check_options": "records are compared",
    "engine/weights.py __init__": "an error hands out what a checkpoint has recorded",
}
DICTIONARIES = {"Config", "dict", "Mapping"}


def names_in(node: ast.AST | None) -> set[str]:
    return set() if node is None else {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def is_options(node: ast.AST) -> bool:
    """Whether this is called as a dictionary of options would be: `config`, `options`, of an object's own too."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name, value=ast.Name(id="self")):
            return name in ("config", "options")
    return False


def reads_dictionary(node: ast.AST) -> bool:
    """Whether an expression takes a dictionary of options, names its type, or reads one."""
    match node:
        case ast.arg(arg=name, annotation=kind):
            return name == "config" or (name == "options" and bool(names_in(kind) & DICTIONARIES))
        case ast.Name(id="Config") | ast.alias(name="Config"):
            return True
        case ast.Attribute(attr="flat") | ast.Attribute(attr="config", value=ast.Name(id="self")):
            return True
        case ast.Subscript(value=value) | ast.Call(func=ast.Attribute(attr="get", value=value)):
            return is_options(value)
    return False


def readers(tree: ast.AST) -> Iterator[str]:
    """The functions in which a dictionary of options is read."""
    nodes = [(tree, "the module")]
    while nodes:
        node, where = nodes.pop()
        if reads_dictionary(node):
            yield where
        inside = node.name if isinstance(node, ast.FunctionDef) else where
        nodes += [(child, inside) for child in ast.iter_child_nodes(node)]


def test_the_dictionary_of_options_ends_at_the_door_of_a_job():
    """Behind it constructors and functions take values or groups of options; a new reader here needs its reason."""
    files = {str(path.relative_to(ROOT)): path for folder in BEHIND_IT for path in source_files(folder)}
    assert set(files) > DOOR
    found = {f"{name} {where}" for name in set(files) - DOOR for where in readers(parsed(files[name]))}
    assert found == set(READS_IT)


@pytest.mark.parametrize(
    "code",
    [
        "def f(config): ...",
        "def f(options: dict[str, Any]): ...",
        "def f(options: Mapping[str, Any]): ...",
        "def f(given: Config): ...",
        "from config.options import Config",
        "Config = dict[str, Any]",
        "config['seed']",
        "config.get('seed')",
        "options['seed']",
        "self.options.get('seed')",
        "self.config | {'seed': 1}",
        "job.options.flat",
    ],
)
def test_what_reads_a_dictionary_of_options_is_found(code):
    assert list(readers(ast.parse(code))) != []


@pytest.mark.parametrize(
    "code",
    ["def f(options: Options): return options.run.seed", "checkpoint['config']", "options.job.config", "f(**options)"],
)
def test_what_reads_groups_or_a_record_is_not(code):
    assert list(readers(ast.parse(code))) == []


# --- experiments -----------------------------------------------------------------------------------------------------


def test_every_module_below_config_is_an_experiment():
    modules = {path for path in source_files("config") if path.parent != ROOT / "config" and path.name != "__init__.py"}
    modules = {path for path in modules if ROOT / "config" / MINE not in path.parents}
    assert len(modules) == len(EXPERIMENTS) >= 30
    assert {
        ROOT / "config" / Path(*name.split(".")).parent / f"{name.rpartition('.')[2]}.py" for name in EXPERIMENTS
    } == modules


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_plain_and_says_what_it_is(name):
    config = CONFIGS[name]
    assert json.loads(json.dumps(config)) == config
    assert set(ENTRY_OPTIONS).isdisjoint(config)
    source = (ROOT / "config" / Path(*name.split("."))).with_name(f"{name.rpartition('.')[2]}.py").read_text()
    assert ast.get_docstring(ast.parse(source))


def recipe_of(method: str) -> dict[str, Any]:
    """A configuration with all keys of a method."""
    if method == "classification":
        return recipes.classification(dataset="CIFAR100", network="resnet8")
    known = {"QuEST": recipes.quest, "letKD-1": recipes.letkd1, "letKD-2": recipes.letkd2, "FitNet": recipes.fitnet}
    recipe = known[method]
    return recipe(dataset="CIFAR100", teacher="resnet56", student="resnet20")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_all_keys_and_known_names(name):
    config = CONFIGS[name]
    assert set(config) == set(recipe_of(config["method"]))
    networks = [config[key] for key in ("network", "teacher", "student") if key in config]
    assert set(networks) <= set(list_models()), networks
    assert config["dataset"] in list_datasets()
    assert config["milestones"] == sorted(config["milestones"]) and config["milestones"][-1] < config["epochs"]


@functools.cache
def structure(network: str) -> TappedNetwork:
    """A network without numbers."""
    return create_on_meta(network)


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_belongs_to_its_teacher_and_place(name):
    config = CONFIGS[name]
    assert name.rpartition(".")[2].startswith("unlabelled" if config["unlabelled_share"] == 1 else config["method"])
    teacher, source = CONFIGS[config["teacher_experiment"]], CONFIGS[config["supervision"]]
    assert teacher["network"] == source["network"] == config["teacher"]
    assert (source["trained_as"] or config["supervision"]) == config["teacher_experiment"]
    assert {teacher["dataset"], source["dataset"], name.partition(".")[0]} == {config["dataset"]}
    assert source["published_weights"] == teacher["published_weights"] == config["published_weights"]
    student, network = structure(config["student"]), structure(config["teacher"])
    assert source["downscale"] == student.penultimate.reduction // network.penultimate.reduction


@pytest.mark.parametrize("name", ALONE)
def test_a_network_trained_under_another_name_is_the_same_network(name):
    if other := CONFIGS[name]["trained_as"]:
        assert CONFIGS[other]["network"] == CONFIGS[name]["network"] and CONFIGS[other]["trained_as"] is None


def test_the_required_experiments_are_there():
    """The six pairs of ResNets and wide ResNets with all methods, and every network of them alone."""
    folders = ("resnetv1.RN56_RN20", "resnetv1.RN110_RN20", "resnetv1.RN110_RN32", "resnetv1.RN32x4_RN8x4")
    folders += ("WRN.WRN40w2_WRN16w2", "WRN.WRN40w2_WRN40w1")
    needed = {f"CIFAR100.{folder}.{method}" for folder in folders for method in ("QuEST", "letKD-1", "letKD-2")}
    for folder in folders:
        family, _, pair = folder.partition(".")
        needed |= {f"CIFAR100.{family}.{network}" for network in pair.split("_")}
    needed |= {"CIFAR10.resnetv1.RN20_RN8.letKD-2", "digits.RN14", "digits.RN8", "digits.RN14_RN8.letKD-2"}
    assert needed <= set(EXPERIMENTS)


HERE = [name for name in PUBLISHED["experiments"] if name in CONFIGS]


@pytest.mark.parametrize("name", HERE)
def test_an_experiment_has_the_published_values(name):
    config, published, common = CONFIGS[name], PUBLISHED["experiments"][name], PUBLISHED["common"]
    same = ("method", "teacher", "student", "learning_rate", "alpha_penultimate")
    same_always = (
        "dataset", "batch_size", "test_batch_size", "epochs", "milestones", "lr_factor", "num_words", "temperature",
        "cls_loss_coef", "quest_loss_coef",
    )  # fmt: skip
    expected = {key: published[key] for key in same} | {key: common[key] for key in same_always}
    expected |= {key: common["optimizer"][key] for key in ("momentum", "nesterov", "weight_decay")}
    if published["method"] == "letKD-2":
        expected |= {key: common[key] for key in ("subclasses_per_class", "lda_components", "sub_loss_coef")}
        expected["alpha_intermediate"] = published["alpha_intermediate"]
    assert {key: config[key] for key in expected} == expected

    teacher, student = structure(config["teacher"]), structure(config["student"])
    assert teacher.penultimate.channels == published["teacher_penultimate_channels"]
    assert student.penultimate.channels == published["student_penultimate_channels"]
    assert (student.penultimate.reduction == 2 * teacher.penultimate.reduction) == published["downscale_teacher"]
    if published["method"] == "letKD-2":
        assert student.intermediate.channels == published["student_intermediate_channels"]
        for network, side in ((teacher, "teacher"), (student, "student")):
            assert network.stages[published[f"{side}_stage_index"]] == network.intermediate

    place = output_directory("experiments", config["supervision"], "kmeans")
    assert str(place) == str(Path(published["codebook"]).parent)
    source, made = PUBLISHED["supervision"][config["supervision"]], CONFIGS[config["supervision"]]
    assert config["published_weights"] == source["teacher_checkpoint"]
    assert (made["network"], made["downscale"]) == (source["network"], 2 if source["downscale"] else 1)


def test_all_published_experiments_are_here():
    assert set(HERE) == set(PUBLISHED["experiments"])
    assert set(PUBLISHED["supervision"]) <= set(EXPERIMENTS)


# --- a step of every experiment --------------------------------------------------------------------------------------

NUM_CLASSES, NUM_WORDS, NUM_SUBCLASSES, IDENTITY = 3, 16, 2, "the teacher of these tests"
IMAGES = ImageTensors(torch.zeros(2, 16, 16, 3, dtype=torch.uint8), torch.tensor([0, 2]))
HALVES = (0.5, 0.5, 0.5)
MADE_UP = Dataset("made up", ("a", "b", "c"), 16, HALVES, HALVES, padding=0, flip=False, train=IMAGES)


@functools.cache
def random_teacher(name: str) -> TappedNetwork:
    return create_model(name, num_classes=NUM_CLASSES)


def different(names: list[str], *keys: str) -> list[str]:
    """One experiment of each combination of values of `keys`: others differ in data and schedule alone."""
    return list({tuple(CONFIGS[name].get(key) for key in keys): name for name in names}.values())


@pytest.fixture
def with_supervision(tmp_path, monkeypatch):
    """The configuration of a pair with everything that it needs: a teacher, and supervision of random numbers."""

    def prepare(name: str) -> dict[str, Any]:
        config = main_classification.default_config(name) | {"num_words": NUM_WORDS, "localpath": str(tmp_path)}
        if "subclasses_per_class" in config:
            config["subclasses_per_class"] = NUM_SUBCLASSES
        network = random_teacher(config["teacher"])
        weights = Weights(network.state_dict(), tmp_path / "teacher.pth")
        monkeypatch.setattr(teaching, "find_weights", lambda **_: weights)
        monkeypatch.setattr(Weights, "fingerprint", IDENTITY)
        places = {job: output_directory(str(tmp_path), config["supervision"], job) for job in ("kmeans", "LDA")}
        pooling = main_classification.default_config(config["supervision"])["downscale"]

        def save(path: Path, tap: Tap, tensors: dict[str, torch.Tensor], num_subclasses: int | None = None) -> None:
            side = math.ceil(MADE_UP.image_size / tap.reduction) // pooling
            made = made_up(
                tap.path, tensors, IDENTITY, grid=(side, side), image_size=MADE_UP.image_size, pooling=pooling,
                num_subclasses=num_subclasses, dataset=config["dataset"], val_split=config["val_split"],
            )  # fmt: skip
            supervision_files.save_supervision(path, made)

        tap = network.penultimate
        path = supervision_files.codebook_path(places["kmeans"], NUM_WORDS)
        save(path, tap, {"centroids": torch.zeros(NUM_WORDS, tap.channels)})
        if "subclasses_per_class" in config:
            tap, rows = network.intermediate, NUM_CLASSES * NUM_SUBCLASSES
            path = supervision_files.decisions_path(
                places["LDA"], tap.path, num_subclasses=NUM_SUBCLASSES, num_components=config["lda_components"]
            )
            shapes = {
                "scalings": (tap.channels, 2),
                "xbar": (tap.channels,),
                "centers": (rows, 2),
                "prototypes": (rows, 2),
                "decisions": (rows, rows),
            }
            save(path, tap, {key: torch.zeros(shape) for key, shape in shapes.items()}, NUM_SUBCLASSES)
        return config

    return prepare


def take_a_step(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    objective = teaching.open_objective(Options.of(config), MADE_UP).train()
    pixels, labels = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8), torch.tensor([0, 2])
    step = objective(batch_of(pixels, labels), with_statistics=True)
    assert step.loss.isfinite() and step.logits.shape == (2, NUM_CLASSES)
    assert all(value.isfinite().all() for value in (step.terms | step.statistics).values())
    num_terms = {"classification": 1, "QuEST": 2, "letKD-1": 2, "letKD-2": 3}
    num_terms["FitNet"] = 4 if config.get("supervised") else 2
    assert len(step.terms) == num_terms[config["method"]]
    first = next(objective.student.parameters())
    before = first.detach().clone()
    descend(make_optimizer(objective, Options.of(config).protocol), step.loss)
    assert not torch.equal(first, before)
    with torch.inference_mode():
        assert objective.student.eval()(objective.input(pixels)).shape == (2, NUM_CLASSES)


NETWORKS = ("teacher", "student", "network")


def smallest(names: list[str], *keys: str) -> set[str]:
    """Of each combination of families and of values of `keys` the experiment with the smallest networks."""

    def networks(name: str) -> list[nn.Module]:
        return [structure(CONFIGS[name][key]) for key in NETWORKS if key in CONFIGS[name]]

    def kind(name: str) -> tuple:
        return (*(type(network) for network in networks(name)), *(CONFIGS[name].get(key) for key in keys))

    def size(name: str) -> int:
        return sum(parameter.numel() for network in networks(name) for parameter in network.parameters())

    return set({kind(name): name for name in sorted(names, key=size, reverse=True)}.values())


def with_long(names: list[str], short: set[str]) -> list[Any]:
    """The long form takes the other networks of a family too, whose structures the tests above have looked at."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in short)) for name in names]


DIFFERENT_PAIRS = different(PAIRS, "teacher", "student", "method", "penultimate", "supervised")
SHORT_PAIRS = {
    name
    for name in smallest(DIFFERENT_PAIRS, "method", "penultimate", "supervised")
    # QuEST and letKD-1 have less than letKD-2: one pair is enough.
    if CONFIGS[name]["method"] not in ("QuEST", "letKD-1") or name.startswith("digits.")
}


@pytest.mark.parametrize("name", with_long(DIFFERENT_PAIRS, SHORT_PAIRS))
def test_a_pair_takes_a_step_and_evaluates(name, with_supervision):
    config = with_supervision(name)
    assert list(teaching.missing_supervision(Options.of(config))) == []
    take_a_step(config)


DIFFERENT_ALONE = different(ALONE, "network")


@pytest.mark.parametrize("name", with_long(DIFFERENT_ALONE, smallest(DIFFERENT_ALONE)))
def test_a_network_alone_takes_a_step_and_evaluates(name):
    take_a_step(main_classification.default_config(name))
