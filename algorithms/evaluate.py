"""Accuracy of a deployed network: no teacher, no supervision, only the student."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from algorithms.base import Algorithm, Results, say_other_images
from algorithms.commands import command_for, training_command
from algorithms.teaching import FINGERPRINTS, missing_weights, open_objective, supervision_fingerprints
from architectures import InputConfig
from architectures.published import published as published_of
from dataloaders import Dataset
from dataloaders.facts import data_facts, image_facts
from dataloaders.image_folder import classes_of_folder
from distillation.build import build_student, network_name
from distillation.complexity import count_multiply_adds, count_parameters
from distillation.inputs import (
    FIELDS,
    changed_input,
    images_of_data,
    input_of_student,
    mention,
    named,
    options_of,
    own_input,
    role_of,
)
from distillation.objective import Objective
from distillation.prepared import supervised_losses
from engine.accuracy import accuracies, by_class, evaluate
from engine.checkpoints import (
    BEST,
    LAST,
    NEWEST,
    PREVIOUS,
    STOPPED,
    Checkpoint,
    find_checkpoint,
    load_best,
    load_checkpoint,
    other_epoch,
)
from engine.progress import phase
from engine.records import PROGRESS, log, read_results, update_results
from engine.recovery import valid_measurements
from engine.weights import as_it_is, find_weights, load_own
from letkd.processes import member
from results.places import Requirement
from results.settings import FOLDER_DATASETS, MEASUREMENTS, PREPARATION, UNTRAINED, changed_network, name_of_changes
from storage.state_dicts import Weights, load_strictly
from storage.weight_files import name_of_weights, split_entry

PUBLISHED_TOLERANCE = 0.5  # percent
AVERAGE = "_average"  # behind the name of what is measured or drawn of the average of the weights
NUM_WORST = 3  # classes that a line names
OWN_NAMES = {Path(name).stem for name in (LAST, BEST, PREVIOUS, STOPPED)}  # of a run's checkpoints


def result_name(measured: Results, standing: Mapping[str, Results]) -> str:
    """What a measurement is called in `results.json`: its checkpoint's name, the average of weights, the third split.

    What is otherwise than in the training comes behind it: such a measurement never takes the place of the run's own,
    nor one of another file of the same name that of the first.

    Args:
        standing: measurements of the same kind that are there, by name.
    """
    source, changed = measured["weights"], dict(measured.get("changed", {}))
    file, rest = name_of_weights(source), dict(changed)
    name = file + (AVERAGE if measured.get("average") else "") + ("_test" if measured.get("split") == "test" else "")
    if "weights" in changed and file not in OWN_NAMES and file != name_of_weights(rest.pop("weights")[0]):
        short = name + name_of_changes(rest)
        if standing.get(short, {}).get("weights", source) == source:
            return short  # it says which weights
    return name + name_of_changes(changed)


def _compare(top1: float, published: float) -> None:
    """Say how far a published file is from its published figure: a wrong file was once distributed."""
    difference = top1 - published
    log.info("published  %.2f%%, difference %+.2f", published, difference)
    if abs(difference) > PUBLISHED_TOLERANCE:
        log.warning("warning: more than %.1f from the published figure; is this the right file?", PUBLISHED_TOLERANCE)


def _worst_classes(accuracies: dict[str, float | None]) -> str:
    """The classes with the lowest accuracies, in words."""
    known = [(accuracy, name) for name, accuracy in accuracies.items() if accuracy is not None]
    listed = ", ".join(f"{name} {accuracy:.2f}%" for accuracy, name in sorted(known)[:NUM_WORST])
    return f"least accurate: {listed}"


def said_of_untrained(weights: Weights) -> str | None:
    """What weights whose classifier nothing has trained are good for; None where something has."""
    if weights.classifier != UNTRAINED:
        return None
    return (
        f"nothing has trained the classifier of {weights.source}, so its classes mean nothing; measure its features "
        f"with probe=True, or begin a run with labels from it, init={weights.source}"
    )


def refuse_untrained(weights: Weights) -> None:
    """For what gives away the classes that a network says.

    Raises:
        ValueError: nothing has trained its classifier; says what to do.
    """
    if said := said_of_untrained(weights):
        raise ValueError(said)


class Evaluation(Algorithm):
    """Evaluates the last epoch of an experiment, its best, or epoch n; a teacher also from its published weights."""

    mode = "evaluate"
    writes_files = False  # a training may go on beside it
    takes_many = True
    checkpoint: Checkpoint | None = None  # that the weights are of, where it is one of a run here
    opened: tuple[Any, ...] = ()  # its file, as it was

    def _run(self) -> Results:
        options = self.options
        weights, epoch = self._open_weights()
        split = "test" if options.job.testset else "eval"
        dataset = self._open_images(weights, split)
        seen = self._seen(weights, dataset)
        model = self._open_model(weights, dataset.num_classes, seen.image_size)
        deployed, num_images = nn.Sequential(seen.module().to(self.device), model), len(dataset.split(split))
        loader = self.loader(dataset, split, member=member())
        with phase(f"evaluation of {num_images} images", num_images, starts_up=True) as line:
            measured = evaluate(deployed, line.over(loader), autocast=self.autocast())
        log.info(
            "%s: %s on %d %s images of %s, %.0f img/s",
            weights.source, accuracies(measured, dataset.num_classes), num_images, split, dataset.name,
            measured["images_per_second"],
        )  # fmt: skip
        if said := said_of_untrained(weights):
            log.info("note: %s", said)
            measured["classifier"] = UNTRAINED
        measured |= by_class(measured.pop("class_counts"), dataset.classes)
        log.info("macro-F1 %.2f%%, %s", measured["macro_f1"], _worst_classes(measured["class_accuracies"]))
        published = options.network and options.network.published_top1
        if published is not None and weights.source == Path(options.experiment.published_weights or ""):
            _compare(measured["top1"], published)
        measured |= self.about(weights, epoch) | {"split": split, "num_images": {split: num_images}}
        measured["num_classes"] = dataset.num_classes
        measured |= self._changes(weights, dataset)
        return self._record(measured, count_parameters(model) | count_multiply_adds(model, seen.image_size))

    def _open_weights(self) -> tuple[Weights, int | None]:
        """The weights that were asked for, and their epoch where it is known."""
        job, network = self.options.job, self.options.network
        if network and (network.weights or not self._has_checkpoint()):
            weights = self._find_weights(network.weights)
            self._refuse_choice(weights.source)
            path, _ = split_entry(weights.source)
            is_own = weights.data is not None and path.resolve().parent == self._trained_in.resolve()
            return weights, self._open(path)["epoch"] if is_own else None
        path = self._trained_in / BEST if job.best else find_checkpoint(self._trained_in, job.checkpoint or NEWEST)
        if not path.is_file():
            command = self._training_command()
            raise FileNotFoundError(f"{self._trained_as} has not been trained: no {path}; train it: {command}")
        checkpoint = self._open(path)
        if job.best:
            load_best(self._trained_in)  # is it the best of this run?
        part = "average" if job.average else "model"
        if part not in checkpoint:
            raise ValueError(f"{path} has no average of the weights: train with average=True, or leave it out")
        told = {"config": checkpoint.get("config"), "classifier": checkpoint.get("classifier")}
        return Weights(checkpoint[part], path, checkpoint["data"], **told), checkpoint["epoch"]

    def _has_checkpoint(self) -> bool:
        """Whether the run has its newest checkpoint, or the one that was asked for without it."""
        job, directory = self.options.job, self._trained_in
        if (directory / LAST).is_file():
            return True
        if job.best:
            return (directory / BEST).is_file()
        try:
            return job.checkpoint > 0 and find_checkpoint(directory, job.checkpoint).is_file()
        except FileNotFoundError:
            return False

    def _open(self, path: Path) -> Checkpoint:
        """One of a run's own checkpoints, which may be written anew while its weights are measured."""
        self.opened = as_it_is(path)
        self.checkpoint = load_own(path)
        self.checkpoint.pop("optimizer", None)  # as large as the weights, and of no use
        return self.checkpoint

    def _refuse_choice(self, source: Path) -> None:
        """Refuse options that choose among a run's checkpoints where the weights are a file."""
        job = self.options.job
        if job.average:
            raise ValueError(
                "average=True is of a run's own checkpoints; of a file an average is chosen by its entry: "
                f"weights={source}#average"
            )
        if job.best or job.checkpoint > 0:
            chosen = "best=True" if job.best else f"checkpoint={job.checkpoint}"
            raise ValueError(
                f"{chosen} is of a run's own checkpoints, and {source} is none of them: leave it out, or name the file "
                "of that epoch, weights=FILE"
            )

    def about(self, weights: Weights, epoch: int | None) -> Results:
        """What a measurement says of the weights that it is of."""
        found = {"weights": str(weights.source), "epoch": epoch}
        return found | ({"average": True} if self.options.job.average else {})

    @property
    def _trained_as(self) -> str:
        """The run that trains the weights."""
        network = self.options.network
        return (network and network.trained_as) or self.options.job.run_name

    @property
    def _trained_in(self) -> Path:
        """The directory of that training."""
        is_other = self._trained_as != self.options.job.run_name
        return self.training_directory(self._trained_as) if is_other else self.directory

    def _find_weights(self, chosen: str | None) -> Weights:
        """Those of a network alone that was not trained here to its end."""
        name, directory = self._trained_as, self._trained_in
        published = self.options.experiment.published_weights
        network = self.options.network.network
        missing = missing_weights(self.given, network=network, experiment=name, chosen=chosen, directory=directory)
        for requirement in missing:
            begins = requirement.published is None and "checkpoint" not in requirement.options
            command = self._training_command() if begins else command_for(requirement, self.given)
            raise FileNotFoundError(f"{requirement.what}; make it: {command}")
        return find_weights(experiment=name, directory=directory, chosen=chosen, published=published, network=network)

    def _training_command(self) -> str:
        """The command line that trains the weights from scratch."""
        if self._trained_as == self.options.job.run_name:
            return training_command(self.given)
        options = {"network": self.options.network.network}
        return command_for(Requirement("", self._trained_as, options), self.given)

    def _open_images(self, weights: Weights, *splits: str) -> Dataset:
        """Splits with the images prepared as those that the weights were trained with, as far as it is known.

        A file of somebody else's has no record of them: then the folder says the classes, and what its own tells of
        size and normalisation, or else what is published of its network, goes before what the training images measure.
        """
        if weights.data is not None:
            return self.open_dataset(*splits, data=weights.data)
        known = {key: weights.trained_with[key] for key in PREPARATION if key in weights.trained_with}
        if self.options.data.dataset in FOLDER_DATASETS:
            published = published_of(network_name(self.options))
            known = dict(published.trained_with if published else {}) | known | self._classes(weights)
            lacking = [key for key in PREPARATION if getattr(self.options.data, key) is None and key not in known]
            if lacking and "train" not in splits:
                splits = ("train", *splits)  # which measures them
        dataset = self.open_dataset(*splits, data=known)
        if told := [key for key in PREPARATION if key in known and getattr(self.options.data, key) is None]:
            values = ", ".join(f"{key} {getattr(dataset, key)}" for key in told)
            log.info("images     as %s was trained: %s", weights.source, values)
        return dataset

    def _seen(self, weights: Weights, dataset: Dataset) -> InputConfig:
        """What the network sees of the images: what it was trained with, unless options say otherwise."""
        seen = input_of_student(self.options, dataset, weights)
        mention(role_of(self.options), seen, images_of_data(dataset))
        return seen

    def _classes(self, weights: Weights) -> Results:
        """{"classes": those of the folder, in the order in which the weights call them, or else in that of names}."""
        folders = classes_of_folder(self.options.run.data_dir)
        called = weights.trained_with.get("classes")
        if called and sorted(called) != list(folders):
            log.info(
                "note: %s calls its classes %s, ...; those of the folder are taken in alphabetical order",
                weights.source, called[0],
            )  # fmt: skip
            called = None
        return {"classes": called or folders} if folders else {}

    def _changes(self, weights: Weights, dataset: Dataset) -> Results:
        """{"changed": what makes this another measurement than the training's own}, said in a line; {} for its own.

        Images that were added, removed or replaced since are mentioned.
        """
        changed = self._changed(weights)
        if not changed:
            say_other_images(weights.data or {}, data_facts(dataset) | image_facts(dataset))
            return {}
        listed = ", ".join(f"{key}={now!r} instead of {before!r}" for key, (before, now) in changed.items())
        log.info("note: this is not the run's own measurement, and is kept apart from it: %s", listed)
        return {"changed": {key: list(values) for key, values in changed.items()}}

    def _changed(self, weights: Weights) -> dict[str, tuple[Any, Any]]:
        """Options that bear on what is measured, and are otherwise than in the training: (then, now)."""
        data, before, known = self.options.data, weights.config, weights.data
        if before is None:  # of a file that does not tell its training the first measurement is the run's own
            standing = read_results(self.directory)
            is_own = standing.get("mode") == "evaluate" and "changed" not in standing
            before = standing.get("options", {}) if is_own else {}
        known = {key: before[key] for key in PREPARATION if key in before} if known is None else known
        given = {key: value for key in PREPARATION if (value := getattr(data, key)) is not None and key in known}
        changed = changed_network(before, self.options.flat)
        changed |= {key: (known[key], value) for key, value in given.items() if value != known[key]}
        changed |= changed_input(self.options, weights) if weights.data else self._other_input(before)
        return changed | self._other_weights(weights.source)

    def _other_input(self, before: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Options of what the network sees that differ from those of the first measurement, likewise."""
        role = role_of(self.options)
        now = options_of(self.options, role)
        names = [f"{role}_input", *(f"{role}_{ending}" for ending in FIELDS.values())]
        return {key: (before[key], now.get(key)) for key in names if key in before and before[key] != now.get(key)}

    def _other_weights(self, source: Path) -> dict[str, tuple[Any, Any]]:
        """Where the weights are neither this run's nor the published ones of an experiment that was not trained."""
        options, own = self.options, self.directory / LAST
        published = None if own.is_file() else options.experiment.published_weights
        if source.parent == self.directory or (published and source == Path(published)):
            return {}
        chosen = (options.network and options.network.weights) or own.is_file()
        return {"weights": (published or str(own), str(source))} if chosen else {}

    def _open_model(self, weights: Weights, num_classes: int, image_size: int) -> nn.Module:
        """The deployed network with its weights, on the device."""
        return self._filled(build_student(self.options, num_classes, image_size), weights, num_classes)

    def _filled(self, model: nn.Module, weights: Weights, num_classes: int) -> nn.Module:
        what = f"the network of {self.options.job.run_name} with {num_classes} classes"
        load_strictly(model, weights.state, source=weights.source, what=what)
        return model.to(self.device, memory_format=torch.channels_last)

    def _open_objective(self, weights: Weights, dataset: Dataset) -> Objective:
        """Student, teacher, and the losses that supervision is read for, as in training; on the device, in eval mode.

        Without the training images, which other losses may have to know.

        Raises:
            ValueError: something else has taught these weights than what is there now.
        """
        saved = self.checkpoint or load_checkpoint(weights.source)
        self._check_taught_by(saved)
        supervised = supervised_losses(self.options)
        role = role_of(self.options)
        own = named(role, own_input(self.options, role, weights)) | {f"{role}_input": None}
        objective = open_objective(self.options.changed(**own), dataset, supervised)
        what = f"the network of {self.options.job.run_name} with {dataset.num_classes} classes"
        load_strictly(objective.student, weights.state, source=weights.source, what=what)
        losses = {name: value for name, value in saved["losses"].items() if name.partition(".")[0] in supervised}
        load_strictly(objective.losses, losses, source=weights.source, what="the losses of this experiment")
        return objective.to(self.device, memory_format=torch.channels_last).eval()

    def _check_taught_by(self, checkpoint: Checkpoint) -> None:
        """Refuse what the training has not had, as far as its checkpoint says that."""
        before, data = checkpoint["config"], self.options.data
        remedy = "give the options of the training, or train again with what is there"
        if before.get("unlabelled") and before.get("unlabelled_share") == 1 and not data.is_label_free:
            remedy = f"its training had unlabelled={before['unlabelled']} unlabelled_share=1, say so again"
        for key, now in supervision_fingerprints(self.options).items():
            then = checkpoint.get(key)
            if then is not None and then != now:
                raise ValueError(
                    f"{checkpoint.path} was trained with {FINGERPRINTS[key]} {then[:12]}..., and there is "
                    f"{now[:12]}...: {remedy}"
                )

    def _record(self, measured: dict[str, Any], costs: dict[str, int]) -> Results:
        """Beside the training's results where there are some, under `evaluations`; else as the directory's results."""

        def add(results: Results) -> Results:
            standing = results.get("evaluations", {})
            evaluations = standing | {result_name(measured, standing): measured}
            is_own = results.get("mode") == "evaluate" and "changed" not in results
            if results.get("mode") != "train" and not ("changed" in measured and is_own):
                others = {part: results[part] for part in MEASUREMENTS.values() if part in results}
                results = others | self.facts() | measured | costs
            return results | {"evaluations": evaluations}

        return self.update_results(add)

    def update_results(self, add: Callable[[Results], Results]) -> Results:
        """Write what `add` makes of the content of `results.json`.

        Raises:
            ValueError: as `refuse_gone`, or the training has ended meanwhile with later epochs.
        """

        def add_valid(results: Results) -> Results:
            self.refuse_gone()
            added = add(results)
            has_ended = results.get("mode") == "train" and not (self.directory / PROGRESS).is_file()
            if has_ended and self._has_changed():
                self._refuse_earlier(results, added)
            return added

        return update_results(self.directory, add_valid)

    def refuse_gone(self) -> None:
        """Refuse weights that are no longer those of the run in their directory.

        Raises:
            ValueError: another run has begun there since they were opened, or it has gone back before their epoch.
        """
        checkpoint = self.checkpoint
        if not self._has_changed():
            return
        files = {checkpoint.path, *map(checkpoint.path.with_name, (LAST, STOPPED))}
        if not any(_has_epochs(path, checkpoint.get("history", [])) for path in files):
            raise ValueError(
                f"the run in {checkpoint.path.parent} has begun again, or gone back, while its weights were measured: "
                "nothing is recorded of them"
            )

    def _has_changed(self) -> bool:
        """Whether the checkpoint is another file by now, or none."""
        return self.checkpoint is not None and as_it_is(self.checkpoint.path) != self.opened

    def _refuse_earlier(self, results: Results, added: Results) -> None:
        """Refuse what is new in `added` and not of the epochs that a training has ended with."""
        epoch, best_epoch = results.get("epochs"), results.get("best_epoch")
        if None in (epoch, best_epoch):  # what is not recorded is not compared
            return
        valid = valid_measurements(added, epoch=epoch, best_epoch=best_epoch)
        for part, entries in valid.items():
            standing = results.get(part, {})
            if any(name not in entries and added[part][name] is not standing.get(name) for name in added[part]):
                raise ValueError(
                    f"the run in {self.directory} has ended with later epochs while these weights were measured: "
                    "nothing is recorded of them; measure it again"
                )


def _has_epochs(path: Path, history: list[dict[str, Any]]) -> bool:
    """Whether a checkpoint goes on these epochs; a damaged one may."""
    try:
        known = load_checkpoint(path).get("history", history)
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return len(known) >= len(history) and other_epoch(known, history) is None
