"""Train, evaluate, or make the supervision of an experiment.

    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2                train
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2 evaluate=True  evaluate
    python main_classification.py with config=CIFAR100.resnetv1.RN56 kmeans=4096                 make a codebook
    python main_classification.py with config=CIFAR100.resnetv1.RN56 LDA=5                       make decision scores
    python main_classification.py with config=CIFAR100.resnetv1.RN56 class_means=True            make class means
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2 probe=True     probe (table 4)
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2 layers=True    what its layers do
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2 trials=5       seeds 0 to 4
    python main_classification.py with config=CIFAR100.resnetv1.RN56_RN20.letKD-2 export=onnx   take the student away
    python main_classification.py predict with config=digits.RN14_RN8.letKD-2 images=FOLDER      classes of image files
    python main_classification.py pictures with config=digits.RN14_RN8.letKD-2                   pictures of a student
    python main_classification.py study with pairs=digits.RN14_RN8 methods=alone,KD,letKD-1      compare methods
    python main_classification.py report --watch                                                 a page of all results
    python main_classification.py print_config with config=digits.RN14_RN8.letKD-2               show every option
    torchrun --nproc-per-node=2 main_classification.py with config=CIFAR100.resnetv1.RN56        train on two GPUs

config=A.B.C is the module config/A/B/C.py; a pair with any sum of methods needs none, like
config=CIFAR100.resnetv1.RN56_RN20.letKD-2+DKD. Every key that print_config shows can be set on the command line.
"""

import contextlib
import difflib
import errno
import itertools
import json
import logging
import os
import reprlib
import shlex
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

TOO_MANY_FILES = os.strerror(errno.EMFILE)  # whoever says it: Python, the linker, torch
MORE_FILES = "too many open files; raise the limit (ulimit -n 1024), or try a smaller num_workers"
WANTS_TRACEBACK = {"-d", "--debug"}
HELP = {"-h", "--help"}


def _end_process(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What `main` does not see: Ctrl-C or too few descriptors while modules are imported, Ctrl-C again as it ends."""
    if issubclass(kind, KeyboardInterrupt):
        os._exit(130)
    if TOO_MANY_FILES in str(error) and not WANTS_TRACEBACK & set(sys.argv):
        os.write(2, f"error: {MORE_FILES}\n".encode())
        return
    sys.__excepthook__(kind, error, trace)


if __name__ == "__main__":
    sys.excepthook = _end_process

warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)  # sacred 0.8.7 uses it

import colorama  # a dependency of sacred's, and so is docopt
import sacred
from docopt import docopt
from sacred.config import ConfigDict
from sacred.observers import FileStorageObserver
from sacred.utils import apply_backspaces_and_linefeeds, set_by_dotted_path

from config.command_lines import command_line, options_for, read_value
from config.experiments import (
    ENTRY_OPTIONS,
    canonical_name,
    check_name,
    composed_config,
    default_config,
    default_configs,
    defaults_for,
)
from config.option_files import OPTION_VALUES, OPTIONS_FILES, is_option_value, load_options
from config.options import OPTIONS, Config, Options, values_of
from config.options import Study as StudyOptions
from config.schema import options_of
from config.updates import check_command, check_updates, flat
from storage.documents import first_line

if TYPE_CHECKING:  # what is large or optional is imported when there is work for it
    from sacred.observers import MongoObserver

    from engine.ranks import Processes

WORKER_DIED = "DataLoader worker (pid"  # what torch says when the system has killed a process that decodes images
USER_ERRORS = (ValueError, OSError, FloatingPointError, MemoryError, sacred.utils.SacredError)
MONGO_TIMEOUT_MS = 5000  # to find the server
WATCH_SECONDS = 5  # between two reports
CAPTURE_MODES = ("no", "sys", "fd")
NUM_PROCESSES, RANK = "WORLD_SIZE", "RANK"  # of a run of many, as torchrun says it in the environment
FLAGS = {"--watch": ("report", "watch=True"), "--dry-run": ("study", "dry_run=True")}  # of commands of ours
# Of the command `study`, beside whatever is set for its runs; without a seed sacred would draw one.
STUDY_OPTIONS = values_of(StudyOptions) | {key: ENTRY_OPTIONS[key] for key in ("localpath", "seed")}
OBSERVER_PACKAGES = ("pymongo", "sqlalchemy", "tinydb")  # of sacred's -m, -s and -t


class _Experiment(sacred.Experiment):
    """sacred's experiment, to which options are data: sacred itself restores objects from them, which can run code.

    Attributes:
        processes: this process among those of a run; None where it is the only one.
    """

    processes: "Processes | None" = None

    def run_commandline(self, argv: list[str]) -> sacred.run.Run | None:
        _, _, usage = self.get_usage()
        words = docopt(usage, argv[1:], default_help=False)["UPDATE"]
        for word in words:
            _check_literal(word)
        _check_groups([word.partition("=")[0].strip() for word in words])
        return super().run_commandline(argv)

    def run(self, command_name: str, config_updates: Config, named_configs: list[str], **rest: Any) -> sacred.run.Run:
        """Options from files, which sacred calls named configurations: of two the later is followed, words go first."""
        sources = [flat(load_options(Path(path))) for path in named_configs] + [flat(config_updates)]
        if command_name == study.__name__:
            given = STUDY_OPTIONS | {key: value for source in sources for key, value in source.items()}
            OPTIONS["localpath"].check_type(given["localpath"])
            return super().run(command_name, nested(given), **rest)
        if of_study := next((key for source in sources for key in source if key in options_of(StudyOptions)), None):
            raise ValueError(
                f"{of_study} is for a study: python main_classification.py study with pairs=A.B methods=C,D"
            )
        given = [source["config"] for source in sources if "config" in source]
        defaults = default_config(canonical_name(given[-1]) if given else ENTRY_OPTIONS["config"])
        updates: Config = {}
        for source in sources:  # each by today's names: an option may have others in a file
            updates |= check_updates(source, defaults)
        if given:
            updates["config"] = defaults["config"]
        return super().run(command_name, nested(updates), **rest)


def _check_literal(word: str) -> None:
    """Refuse what sacred would read as another object than an option's value.

    Raises:
        ValueError: names the option.
    """
    key, _, text = word.partition("=")
    value = read_value(text.strip())
    if not is_option_value(value):
        raise ValueError(f"{key.strip()}={reprlib.repr(value)} {OPTION_VALUES}")


def _check_groups(keys: list[str]) -> None:
    """Refuse an option that is also the first part of another one: sacred would put one into the other.

    Raises:
        ValueError: names both.
    """
    for key in keys:
        for end in range(1, key.count(".") + 1):
            if (group := key.rsplit(".", end)[0]) in keys:
                raise ValueError(f"{group} and {key} cannot be options both; leave out one of them")


sacred.SETTINGS.CAPTURE_MODE = "sys"  # file-descriptor capture times out when worker processes hold the descriptors
# GitPython, which sacred asks at once, fails where there is no git, and hangs or fails with it.
experiment = _Experiment("letKD", save_git_info=False)
experiment.captured_out_filter = apply_backspaces_and_linefeeds
experiment.logger = logging.getLogger("letKD.sacred")
experiment.logger.setLevel(logging.CRITICAL)  # failures are reported by `main`, in one line


def nested(options: Config) -> Config:
    """The reverse of `flat`, which is how sacred has them."""
    found: Config = {}
    for key, value in options.items():
        set_by_dotted_path(found, key, value)
    return found


def _configuration(fixed: Config | None = None, preset: Config | None = None, fallback: Config | None = None) -> Any:
    """What sacred calls to learn the configuration: `fixed` is what the command line sets, by its names here."""
    fixed = dict(fixed or {})
    if STUDY_OPTIONS.keys() <= fixed.keys():  # of several experiments: what is given, and no defaults of one of them
        return ConfigDict(fixed)(fixed, preset, fallback)
    defaults = default_config(fixed.get("config", ENTRY_OPTIONS["config"]))
    updates = check_updates(fixed, defaults)
    summary = ConfigDict(nested(defaults_for(defaults, updates)))(nested(updates), preset, fallback)
    summary.docs |= {key: said.help for key, said in OPTIONS.items()}  # which `print_config` shows
    return summary


experiment.configurations.append(_configuration)


class Records(FileStorageObserver):
    """The record of every run below <localpath>/sacred.

    Attributes:
        is_void: whether a mistake has ended the run before it left anything: then nothing of its record stays.
    """

    is_void = False

    def started_event(self, *args: Any, **kwargs: Any) -> str:
        folders = (Path(self.basedir), *Path(self.basedir).parents)
        self.new_folders = [folder for folder in folders if not folder.exists()]
        return super().started_event(*args, **kwargs)

    def failed_event(self, *args: Any, **kwargs: Any) -> None:
        super().failed_event(*args, **kwargs)
        if not self.is_void:
            return
        shutil.rmtree(self.dir)
        if self.new_folders and not any(entry.name.isdigit() for entry in Path(self.basedir).iterdir()):
            shutil.rmtree(self.source_dir, ignore_errors=True)  # not all: another process may have a record there now
        for folder in self.new_folders:
            with contextlib.suppress(OSError):  # there is something else in it by now
                folder.rmdir()


@experiment.config_hook
def _observe(config: Config, command_name: str, logger: logging.Logger) -> Config:
    """Every run is recorded below <localpath>/sacred, unless sacred was told otherwise, and where `mongo` says.

    One whose options cannot work leaves nothing, nor does one that another mistake ends before it begins.
    """
    if experiment.processes is not None and command_name not in (run.__name__, predict.__name__):
        raise ValueError(f"{command_name} is done by one process; start it by python in place of torchrun")
    experiment.observers = [Records(Path(config["localpath"]) / "sacred")]
    if command_name == run.__name__ and config["mongo"] is not None and not run.unobserved:
        experiment.observers.append(mongo_observer(config["mongo"]))
    if command_name == run.__name__:
        from algorithms import check_run

        check_run(_plain(config))
    return {}


@experiment.option_hook
def _check_flags(options: Config) -> None:
    """sacred's own: --capture, which it does not check, and --enforce_clean, for which it needs GitPython."""
    if options.get("--capture") not in (None, *CAPTURE_MODES):
        raise ValueError(f"--capture={options['--capture']} must be {', '.join(CAPTURE_MODES)}")
    if options.get("--enforce_clean"):
        from engine.records import code_version

        version = code_version()
        if version is None or version["dirty"]:
            state = "its commit is not known" if version is None else "it has changes that are not committed"
            raise ValueError(f"--enforce_clean: the code is not clean: {state}")
        options["--enforce_clean"] = False


def mongo_observer(address: str) -> "MongoObserver":
    """Records a run in a MongoDB, as sacred does it; environment variables in the address are replaced.

    Args:
        address: host:port/database or mongodb://... with a database. It is recorded as it stands, and so would be a
            password in it: write $VARIABLE.

    Raises:
        ValueError: pymongo is not installed, or this is no such address.
        ConnectionError: the server does not answer.
    """
    try:
        import pymongo
    except ModuleNotFoundError as error:
        raise ValueError(f"mongo={address!r} needs pymongo; install it: python -m pip install pymongo") from error
    from sacred.observers import MongoObserver

    url = os.path.expandvars(str(address))
    url = url if "://" in url else f"mongodb://{url}"
    try:
        client = pymongo.MongoClient(url, serverSelectionTimeoutMS=MONGO_TIMEOUT_MS)
        database = client.get_default_database().name
        client.admin.command("ping")
    except (pymongo.errors.InvalidURI, pymongo.errors.ConfigurationError, ValueError) as error:
        example = "host:port/database, like localhost:27017/sacred"
        raise ValueError(f"mongo={address!r} must be {example} ({first_line(error)})") from error
    except pymongo.errors.PyMongoError as error:
        reason, _, _ = first_line(error).partition(" (configured timeouts")  # what follows is long
        raise ConnectionError(f"mongo={address!r} does not answer: {reason}") from error
    return MongoObserver(client=client, db_name=database)


@experiment.main
def run(_config: Config, _run: sacred.run.Run) -> Config:
    """Train, or do what evaluate, probe, kmeans, LDA or class_means ask for."""
    from algorithms import Algorithm, run_config, set_up_console

    set_up_console()
    config, traces = _plain(_config), Algorithm.num_traces
    try:
        if experiment.processes is not None:
            experiment.processes.open_group(config)
        return run_config(config)
    except USER_ERRORS:
        for record in _run.observers:
            if isinstance(record, Records):
                record.is_void = Algorithm.num_traces == traces
        raise
    except KeyboardInterrupt as stop:
        # What has a state may also be a teacher that was prepared, or a trial: the same command does the rest of those.
        stop.goes_on = getattr(stop, "unfinished", None) == config
        raise


@experiment.command(unobserved=True)
def predict(_config: Config) -> None:
    """Print the classes of images=FILE, FOLDER or PATTERN; top=5, format=json, export_file=FILE.onnx."""
    from algorithms import Prediction, check_method, check_options, prediction_table
    from dataloaders.image_files import shown
    from engine.stopping import lost_stops_again

    config = _plain(_config)
    check_options(config)
    check_name(config)
    check_command("predict", config)
    check_method(config)
    if experiment.processes is not None:
        experiment.processes.open_group(config)
    with lost_stops_again():
        result = Prediction(Options.of(config)).run()
    print(json.dumps(result, indent=2) if config["format"] == "json" else prediction_table(result))
    if failed := [failure["image"] for failure in result["unreadable"]]:
        count = len(failed) + len(result["images"])
        raise ValueError(f"{len(failed)} of {count} images cannot be read, the first is {shown(failed[0])}")


def draw_picture(name: str, config: Config) -> Config:
    """Draw one picture of a trained experiment.

    Raises:
        ValueError: the experiment lacks what the picture shows; names the nearest that have it.
    """
    from algorithms import check_method, check_options, provide, run_job, set_up_console
    from engine.stopping import lost_stops_again
    from reporting.pictures import PICTURES

    set_up_console()
    check_options(config)
    check_name(config)
    check_command("pictures", config)
    check_method(config)
    options = Options.of(config)
    if lacking := PICTURES[name].lacks(options):
        others = [other for other, own in default_configs()[0].items() if not PICTURES[name].lacks(Options.of(own))]
        near = difflib.get_close_matches(config["config"], others, n=3, cutoff=0)
        raise ValueError(f"picture_{name}: {config['config']} has no {lacking}; try config={' or '.join(near)}")
    picture = PICTURES[name](options, command_line(options_for("pictures", config), command=f"picture_{name}"))
    with lost_stops_again():
        provide(picture)
        return run_job(picture)


@experiment.command(unobserved=True)
def picture_subclasses(_config: Config) -> Config:
    """Draw images with their patches coloured by the teacher's sub-class, and decision rows as histograms."""
    return draw_picture("subclasses", _plain(_config))


@experiment.command(unobserved=True)
def picture_tsne(_config: Config) -> Config:
    """Draw t-SNE of the features before and behind every KD layer, and of its semantic vectors."""
    return draw_picture("tsne", _plain(_config))


@experiment.command(unobserved=True)
def picture_usage(_config: Config) -> Config:
    """Draw the use of the teacher's words over training, and by the trained student and its teacher."""
    return draw_picture("usage", _plain(_config))


@experiment.command(unobserved=True)
def picture_confusion(_config: Config) -> Config:
    """Draw the confusion matrix."""
    return draw_picture("confusion", _plain(_config))


@experiment.command(unobserved=True)
def picture_templates(_config: Config) -> Config:
    """Draw heat maps of the most used templates over images."""
    return draw_picture("templates", _plain(_config))


@experiment.command(unobserved=True)
def pictures(_config: Config) -> None:
    """Draw all pictures that an experiment has the parts for, and say of the others why not."""
    from algorithms import check_options
    from reporting.pictures import PICTURES

    config, failures = _plain(_config), []
    check_options(config)
    for name, picture in PICTURES.items():
        if lacking := picture.lacks(Options.of(config)):
            print(f"no picture_{name}: {config['config']} has no {lacking}")
            continue
        try:
            draw_picture(name, config)
        except USER_ERRORS as error:
            failures.append(f"picture_{name}: {first_line(error)}")
    if failures:
        raise ValueError("; ".join(failures))


@experiment.command(unobserved=True)
def print_outline(_config: Config) -> None:
    """Print the places of the networks where maps can be taken, with channels and grids."""
    from algorithms import check_options
    from distillation.places import table

    config = _plain(_config)
    check_options(config)
    print(table(Options.of(config)))


@experiment.command(unobserved=True)
def report(_config: Config) -> None:
    """Write a page and a Markdown file of all results below localpath; --watch does it again every few seconds."""
    from reporting.report import write_report

    check_command("report", _plain(_config))
    root = Path(_config["localpath"])
    configs, unreadable = default_configs()

    def write(refresh: int | None) -> None:
        command = shlex.join(["python", *sys.argv])
        written = write_report(
            root, configs, composed=composed_config, unreadable=unreadable, command=command, refresh=refresh
        )
        print(f"{written}: {root / 'report' / 'index.html'}", flush=True)

    try:
        while _config["watch"]:
            write(WATCH_SECONDS)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        print("stopped; the page is written once more, and no longer loads itself again", flush=True)
    write(None)


@experiment.command(unobserved=True)
def study(_config: Config) -> None:
    """Train every method of every pair with every seed, and compare them; --dry-run lists the runs and their hours."""
    from algorithms import Queue, Study, run_study, set_up_console
    from engine.stopping import lost_stops_again
    from reporting.report import write_study

    set_up_console()
    planned = Study(_plain(_config))
    if planned.options.dry_run:
        for line in planned.listing():
            print(line, flush=True)
        if planned.options.cluster is not None:
            for line in Queue(planned.options, planned.directory.parent).lines():
                print(line)
        return

    def show(found: Config) -> None:
        print(f"\n{write_study(planned.directory, found)}\n\n{planned.directory} has this table", flush=True)

    try:
        with lost_stops_again():
            failed = run_study(planned, run_by_command, show)
    except KeyboardInterrupt as stop:
        stop.goes_on = False  # that the command of the run does: of the study the same does the rest
        raise
    if failed:
        several = f"{len(failed)} runs have failed, the first is" if len(failed) > 1 else "one run has failed:"
        raise ValueError(f"{several} {failed[0]}; the table has the errors, and the same command tries again")


def run_by_command(options: Config) -> None:
    """The run of some options in this process, recorded as the command that would do the same."""
    before, sys.argv = sys.argv, shlex.split(command_line(options))[1:]
    try:
        experiment.run(run.__name__, nested(options), [], options={"--debug": True})  # errors are ours to report
    finally:
        sys.argv = before


def spelt_out(argv: list[str]) -> list[str]:
    """`report --watch` and `study --dry-run`, which sacred would take for flags of its own, as options."""
    for flag, (command, option) in FLAGS.items():
        if flag in argv and command in argv:
            words = [word for word in argv if word != flag]
            argv = [*words, *["with"] * ("with" not in words), option]
    return argv


def asked_for_help(argv: list[str]) -> list[str]:
    """`report --help` and `with config=... -h`, which sacred does not know, as `help report` and `--help`."""
    if not HELP.intersection(argv):
        return argv
    command = next((word for word in argv[1:] if word in experiment.commands), None)
    return [argv[0], *(["help", command] if command else ["--help"])]


def check_words(argv: list[str]) -> None:
    """Refuse what is no option, or stands where options do not: sacred would look for a command or a file of that name.

    Raises:
        ValueError: names the word, and what was meant where that is clear.
    """
    program, *words = argv
    start = words.index("with") if "with" in words else len(words)
    for number, (before, word) in enumerate(itertools.pairwise(["", *words])):
        if word.startswith("-") or before.startswith("-"):  # an option of sacred's own, or its value
            continue
        if number < start and "=" in word:
            given = [word for word in words if word != "with"]
            commands, options = ([w for w in given if ("=" in w) == is_option] for is_option in (False, True))
            raise ValueError(
                f"options stand behind `with`: python {shlex.join([program, *commands, 'with', *options])}"
            )
        if number > start and word in experiment.commands:
            rest = [other for other in words[:start] if other not in experiment.commands]
            options = [other for other in words[start + 1 :] if other not in experiment.commands]
            meant = shlex.join([program, word, *rest, "with", *options])
            raise ValueError(f"the command {word} stands before `with`: python {meant}")
        is_file = Path(word).suffix.lower() in OPTIONS_FILES or Path(word).is_file()  # of options
        if number > start and "=" not in word and not is_file:
            raise ValueError(f"{word!r} is no option key=value; one with blanks needs quotation marks around it")


def _plain(config: Config) -> Config:
    """sacred's read-only and nested containers as one ordinary dictionary."""
    lists = (list, tuple)
    return {key: list(value) if isinstance(value, lists) else value for key, value in flat(config).items()}


class Terminated(KeyboardInterrupt):
    """The process was told to end, as batch systems do it before they kill."""

    STATUS = "TERMINATED"  # what sacred records


def _terminate(signal_number: int, frame: object) -> None:
    raise Terminated


def main(argv: list[str]) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 1 after a mistake of the user's, which is one line (`--debug` shows the traceback), and
        where runs of a study have failed; 130 after Ctrl-C and 143 after SIGTERM or SIGUSR1, which may come at any
        time: every file is whole or absent. Training finishes its step first and saves its state; a second Ctrl-C ends
        it at once. All processes of a run end with the status of the first that fails or is stopped.
    """
    if os.environ.get(NUM_PROCESSES, "1") != "1":
        return _as_one_of_many(argv)
    return _run_command(argv, _end)


def _end(status: int, message: str | None = None, error: BaseException | None = None) -> int:
    if message:
        print(message, file=sys.stderr)
    return status


def _as_one_of_many(argv: list[str]) -> int:
    """The same in one of the processes of a run, of which rank 0 alone says something."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what its store says when a process ends helps nobody
    from engine.ranks import NoFirstError, meet

    try:
        processes = experiment.processes = meet()
    except ValueError as error:
        speakers = ("0", "1") if isinstance(error, NoFirstError) else ("0",)
        return _end(1, f"error: {error}" if os.environ.get(RANK, "0") in speakers else None)
    with contextlib.ExitStack() as stack:
        if processes.rank:
            run.unobserved = True
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # rank 0 has the same
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        try:
            return _run_command(argv, processes.end)
        except Exception as error:
            processes.end(1, f"error: {type(error).__name__}: {first_line(error)}" if processes.rank else None, error)
            raise
        finally:
            processes.close()
            experiment.processes = None


def _run_command(argv: list[str], end: Callable[..., int]) -> int:
    """Run a command line, and end as `end` says: called with a status, a message and an error."""
    wants_traceback = bool(WANTS_TRACEBACK & set(argv))
    wants_help = bool({*HELP, "help"} & set(argv))
    before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    before |= {number: signal.signal(number, _terminate) for number in (signal.SIGTERM, signal.SIGUSR1)}
    argv = spelt_out(asked_for_help(argv))
    try:
        check_words(argv)
        # In debug mode sacred leaves exceptions to us; otherwise it prints tracebacks of its own.
        experiment.run_commandline(argv if wants_traceback or wants_help else [*argv, "--debug"])
        sys.stdout.flush()
    except BrokenPipeError as error:
        if wants_traceback:
            raise
        return end(1, None, error)  # whoever read has seen enough
    except Exception as error:
        if wants_traceback or not (message := _in_one_line(error)):
            raise
        return end(1, f"error: {message}", error)
    except KeyboardInterrupt as stop:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # it ends already
        command = continuation(argv, has_state=getattr(stop, "goes_on", False))
        start = "python" if experiment.processes is None else experiment.processes.launcher
        return end(143 if isinstance(stop, Terminated) else 130, f"stopped; go on with: {start} {command}", stop)
    finally:
        if experiment.processes is None:  # else it is over: torchrun, which sees one process end, ends the others
            for number, handler in before.items():
                signal.signal(number, handler)
    return end(0)


def _in_one_line(error: Exception) -> str | None:
    """What is said of an error that is no fault of the program's; None for one that is."""
    if TOO_MANY_FILES in str(error):
        return MORE_FILES
    if experiment.processes is not None and (message := experiment.processes.told_of(error)):
        return message
    if isinstance(error, USER_ERRORS):
        return "; ".join(str(error).splitlines()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name in OBSERVER_PACKAGES:
        return f"this observer needs {error.name}; install it: python -m pip install {error.name}"
    if isinstance(error, RuntimeError) and str(error).startswith(WORKER_DIED):
        return f"{first_line(error)} Where memory was short: try a smaller num_workers"
    return None


def run_process() -> None:
    """Run the command line of this process, and end it: what comes then, a signal or a closed pipe, changes nothing."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; a file that is opened later must not take its place
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for a terminal that knows ASCII alone, and names in no encoding
    colorama.init()  # leaves sacred's colours out where the output is no terminal
    try:
        sys.exit(main(sys.argv))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # Python flushes once more


def continuation(argv: list[str], *, has_state: bool) -> str:
    """The command line that goes on where this one was stopped: from the state that its run has left, or else anew."""
    if not has_state:
        return shlex.join(argv)
    words = [word for word in argv if not word.startswith("checkpoint=")]
    return shlex.join([*words, *["with"] * ("with" not in words), "checkpoint=-1"])


if __name__ == "__main__":
    run_process()
