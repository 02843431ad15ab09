"""The training loop that all objectives share.

A step reads nothing back from the device: losses and counts accumulate there and are read every `disp_step` steps and
at the end of an epoch. All randomness of an epoch follows from (seed, epoch), so a run that is stopped after any step
and continued from there is the run that was not stopped.

One process trains on one device. Of many each has a part of every batch, and the first keeps the records: what writes
does nothing elsewhere, and what is read, figures, random states, is read by all of them at the same point.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from algorithms.base import Algorithm, Results, say_other_images
from algorithms.starting import load_start, read_start
from algorithms.teacher_accuracy import TeacherAccuracy, evaluated_on
from algorithms.teaching import (
    FINGERPRINTS,
    drawn_objective,
    missing_supervision,
    open_objective,
    supervision_fingerprints,
    weights_so_far,
    with_inputs,
)
from algorithms.trials import refuse_other_images
from algorithms.unlabelled import check_unlabelled, open_unlabelled, steps_of_epoch
from algorithms.unread import unread_options
from config.options import EMA
from dataloaders import Dataset, TrainLoader, check_shares, make_train_loader
from dataloaders.augmentation import derive_seed
from dataloaders.batch import first_images, noise
from dataloaders.facts import data_facts, image_facts
from dataloaders.mixing import check_pairs, with_mixing
from dataloaders.unlabelled import check_parts, numbers_of
from distillation.build import build_copy, check_names, check_networks
from distillation.cache_options import check_cache
from distillation.complexity import count_multiply_adds, count_parameters
from distillation.inputs import RECORD, TEACHER, images_of_data, mention, network_input, own_input, role_of
from distillation.mixing import check_losses
from distillation.objective import Objective, Teacher
from distillation.teacher_cache import TeacherCache, check_size, open_cache
from engine.accuracy import accuracies, by_class, evaluate
from engine.average import Average
from engine.batch_norm import average_statistics, synchronise_
from engine.checkpoints import (
    BEST,
    LAST,
    STOPPED,
    find_state,
    kept_epoch,
    load_best,
    names_entry,
    random_states,
    restore_random_states,
    save_checkpoint,
    save_last,
    set_aside,
)
from engine.host_memory import keep_freed_memory
from engine.meter import Meter, Step
from engine.numerics import computes_bfloat16, first_non_finite
from engine.optimization import check_optimizer, load_optimizer, make_optimizer
from engine.parallel import parallel
from engine.parameters import freeze, parameter_groups
from engine.progress import Line, phase
from engine.ranks import refuse_differences
from engine.records import (
    RESULTS,
    Curves,
    NoCurves,
    duration,
    log,
    read_results,
    remove_progress,
    save_progress,
    update_results,
)
from engine.recovery import NO_BEST, forget_measurements, recover_files, valid_measurements
from engine.resume import check_classes, check_method, check_optimizer_state, check_options, check_version
from engine.schedule import check_warm_up, learning_rate, set_learning_rate
from engine.step import GraphedStep, TrainStep
from engine.stopping import Stopped, StopRequest
from engine.weights import forget_weights, load_own
from letkd.processes import by_first, member, of_all, wait_for_all
from results.places import Requirement
from results.settings import PREPARATION, UNTRAINED, num_images
from storage.state_dicts import fingerprint, load_strictly

FIGURES = ("loss", "top1", "top5")  # of an evaluation


class Training(Algorithm):
    """Trains the experiment's student from scratch or from a checkpoint, and evaluates it after every epoch."""

    mode = "train"
    takes_many = True

    def missing_requirements(self) -> Iterator[Requirement]:
        check_names(self.options)  # one that does not exist stops here, before hours of preparation
        check_optimizer(self.options.protocol)
        check_losses(self.options)
        check_unlabelled(self.options)
        check_cache(self.options)
        if self.options.job.checkpoint == 0:
            read_start(self.options)
        yield from missing_supervision(self.options)

    def check_processes(self) -> None:
        size, protocol = member().size, self.options.protocol
        if self.options.run.cuda_graph:
            raise ValueError(f"cuda_graph=True is for one process, and these are {size}; leave it out")
        check_shares(protocol.batch_size, size)
        check_pairs(protocol, size)
        if self.options.data.unlabelled is not None:
            number, share = size * protocol.accumulate, self.options.data.unlabelled_share
            check_parts(protocol.batch_size, share, number, f"{number} parts of {size} processes")
        part, rest = divmod(protocol.batch_size, size * protocol.accumulate)
        said = f"batch_size={protocol.batch_size}"
        if protocol.accumulate > 1:
            said = f"{said} in accumulate={protocol.accumulate} parts"
            if rest:
                raise ValueError(f"{said} cannot be shared equally by {size} processes")
        if part < 2 and not self.options.run.sync_bn:
            raise ValueError(
                f"{said} leaves less than two images for each of {size} processes, and a BatchNorm needs two; choose "
                "more, or sync_bn=True"
            )

    def check_images(self, open_images: Callable[[dict[str, Any] | None], Dataset]) -> None:
        dataset = open_images(None)
        protocol = self.options.protocol
        check_warm_up(protocol, steps_of_epoch(self.options, dataset))
        weights = weights_so_far(self.options)
        check_networks(with_inputs(self.options), dataset, weights)
        is_cached = self.options.pair is not None and self.options.pair.teacher_cache is not None
        is_new = is_cached and weights is None
        check_size(self.options, dataset, untrained=self._drawn(dataset).without_teacher() if is_new else None)
        if protocol.freeze or protocol.learning_rates:
            self._check_patterns(dataset)

    def _drawn(self, dataset: Dataset) -> Objective:
        """The objective with random numbers for what is not there yet; none of the run's are drawn."""
        with torch.random.fork_rng(devices=[]):
            return drawn_objective(self.options, dataset)

    def _check_patterns(self, dataset: Dataset) -> None:
        """Refuse patterns of parameters that name nothing; the names are those of an objective of random numbers."""
        objective = self._drawn(dataset)
        freeze(objective, self.options.protocol.freeze)
        parameter_groups(objective, self.options.protocol)

    def facts(self) -> Results:
        """Also what is minimised, how many images there are before any are held out, which evaluate, and what has
        taught: another teacher, or other words, make another student.
        """
        about = {"num_classes": self.dataset.num_classes, "objective": self.objective.describe()}
        about["num_images"] = num_images({"data": self.data})
        about["evaluated_on"] = evaluated_on(self.data, self.options.data.val_split, self.seen)
        about["inputs"] = self.inputs
        began = {"init_fingerprint": self.began_with} if self.began_with else {}
        many = {"processes": member().size} if member().size > 1 else {}
        about |= self.taught_by | began | many
        return super().facts() | about | self._facts_of_cache() | self._facts_of_classifier()

    def _facts_of_classifier(self) -> Results:
        return {} if self.trains_classifier else {"classifier": UNTRAINED}

    def _facts_of_cache(self) -> Results:
        return {"teacher_cache": self.cache.facts} if self.cache else {}

    def run(self) -> Results:
        """As any job; a stop has the configuration as its `unfinished` where the run has a state to go on from.

        It has none before its first step, nor as long as an earlier run of the directory is where it was.
        """
        try:
            return super().run()
        except KeyboardInterrupt as stop:
            if self.has_begun and any((self.directory / name).is_file() for name in (LAST, STOPPED)):
                stop.unfinished = self.options.flat
            raise

    def _run(self) -> Results:
        keep_freed_memory(self.device)
        source = self._find_source()
        checkpoint = load_own(source) if source else None
        if checkpoint:
            check_version(source, checkpoint, epochs=self.options.protocol.epochs)
            check_method(source, checkpoint, method=self.options.experiment.method)
            check_optimizer_state(source, checkpoint, self.options.protocol)
        self._build(checkpoint)
        accuracy = self._check_teacher()
        self._start_or_continue(source, checkpoint)
        self.begin()
        if accuracy:
            accuracy.keep()
        if results := by_first(self._results_of_these_epochs):
            log.info("nothing is left to train: %d epochs are done, %s stays", self.epoch, self.directory / RESULTS)
            remove_progress(self.directory)  # a run that was killed behind its results leaves it
            return results
        # The epochs, and an evaluation behind them where that of the last epoch is not the result.
        self.num_phases = 2 if self.options.data.val_split or self.epoch == self.options.protocol.epochs else 1
        self._save_progress("running")
        first_step = self.epoch * len(self.train_loader) + 1
        curves = Curves if member().is_first else NoCurves
        with curves(self.directory, first_step=first_step) as self.curves, StopRequest() as self.stop:
            for step, statistics in self.meter.looks:  # of the epoch in which the run was stopped
                self.curves.add(first_step - 1 + step, "batch", statistics)
            try:
                self._run_epochs()
            except FloatingPointError:
                self._save_progress("diverged")
                raise
        return self._finish()

    def _run_epochs(self) -> None:
        try:
            with self._phase_of_epochs() as self.line:
                while self.epoch < self.options.protocol.epochs:
                    self._run_epoch(self.epoch + 1)
        except Stopped:
            self._save_unfinished()
            raise

    def _phase_of_epochs(self) -> AbstractContextManager[Line]:
        """Counts the images of training and evaluation."""
        epochs, batch_size = self.options.protocol.epochs, self.options.protocol.batch_size
        num_images = len(self.train_loader) * batch_size + len(self.dataset.eval) * len(self.evaluated)
        done = self.epoch * num_images + self.meter.num_steps * batch_size
        what = f"{epochs} epoch{'s' * (epochs != 1)}"
        return phase(what, epochs * num_images, number=1, count=self.num_phases, initial=done, starts_up=True)

    def _find_source(self) -> Path | None:
        """The file that the run goes on from; None where it begins."""
        if self.options.job.checkpoint == 0:
            return None
        source = find_state(self.directory, self.options.job.checkpoint)
        if source is None:
            log.info("no checkpoint in %s yet: starting from scratch", self.directory)
        return source

    def _open_images(self, checkpoint: dict[str, Any] | None) -> None:
        """Images that are prepared as those so far, also where new ones among them would measure something else."""
        measured = (key for key in PREPARATION if checkpoint and checkpoint["config"].get(key) is None)
        dataset = self.open_dataset("train", "eval", data={key: checkpoint["data"][key] for key in measured})
        self.dataset = self.held_out(dataset)
        self.data = data_facts(dataset) | image_facts(dataset)
        self.unlabelled = open_unlabelled(self.options, self.dataset)
        if self.unlabelled:
            self.data["images"]["unlabelled"] = self.unlabelled.facts()
        if self.options.job.seeds:
            refuse_other_images(self.directory, self.options, num_images({"data": self.data}))

    def _say_inputs(self) -> None:
        """What the network sees of the images; its checkpoints record it, and a line says it, where they are others."""
        options, images = with_inputs(self.options), images_of_data(self.dataset)
        role = role_of(options)
        self.seen = network_input(options, role, images)
        self.inputs = {role: self.seen.facts()}  # what teaches comes to it
        if own := own_input(options, role):
            self.data[RECORD] = own
        mention(role, self.seen, images)

    def _build(self, checkpoint: dict[str, Any] | None) -> None:
        options, protocol = self.options, self.options.protocol
        self._open_images(checkpoint)
        self._say_inputs()
        self.objective = open_objective(options, self.dataset)
        self.cache = self._open_cache(checkpoint)
        self.objective.to(self.device, memory_format=torch.channels_last)
        self.model = self.objective.student
        # Of a run of labelled images alone the accuracy counts, whatever it minimises.
        self.trains_classifier = self.unlabelled is None or self.objective.trains_classifier
        if checkpoint is None:
            self.began_with = load_start(self.model, self.options, self.dataset)
        else:
            self.began_with = checkpoint.get("init_fingerprint")
        self.average = self._make_average(checkpoint)
        self.evaluated = {"eval": nn.Sequential(self.objective.input, self.model)}  # by what the figures are called
        if self.average:
            self.evaluated["average"] = nn.Sequential(self.objective.input, self.average.module).eval()
        self.taught_by = dict.fromkeys(FINGERPRINTS) | supervision_fingerprints(options)
        if (teacher := self._teacher()) is not None:
            self.inputs[TEACHER] = teacher.seen.facts()
        forget_weights()
        known = self.data | self.taught_by | self._facts_of_cache()
        refuse_differences("images and teacher", known | {"init": self.began_with})
        self._synchronise_norms()
        self.frozen_norms = freeze(self.objective, protocol.freeze)
        is_recorded = options.run.cuda_graph and self.device.type == "cuda"
        self.optimizer = make_optimizer(self.objective, protocol, recorded=is_recorded)
        kind = GraphedStep if is_recorded else TrainStep
        self.step = kind(self._on_all_processes(), self.optimizer, self.autocast, protocol.accumulate)
        self.train_loader = self._make_train_loader()
        check_warm_up(protocol, len(self.train_loader))
        self.eval_loader = self.loader(self.dataset, "eval", member=member())
        self._say_what_is_built()

    def _make_train_loader(self) -> TrainLoader:
        options = self.options
        make_loader = make_train_loader
        if self.unlabelled:
            make_loader = partial(self.unlabelled.make_train_loader, accumulate=options.protocol.accumulate)
        loader = make_loader(
            self.dataset,
            batch_size=options.protocol.batch_size,
            device=self.device,
            seed=options.run.seed_of_views,
            num_workers=options.run.num_workers,
            padding_mode=options.data.padding_mode,
            augmentation=options.augmentation,
            member=member(),
        )
        return with_mixing(loader, options.protocol, seed=options.run.seed_of_views)

    def _say_what_is_built(self) -> None:
        """What is about to be trained, behind what may be otherwise than it was meant."""
        options, protocol = self.options, self.options.protocol
        if options.run.precision == "bf16" and not computes_bfloat16(self.device):
            log.info("note: this device has no bfloat16 units; precision=fp32 is much faster here")
        beyond = [milestone for milestone in protocol.milestones if milestone >= protocol.epochs]
        if beyond and protocol.schedule == "step":
            log.info("note: milestones %s are not reached in %d epochs", beyond, protocol.epochs)
        for unread in unread_options(options):
            log.info("note: %s", unread)
        apart = [key for key, loss in self.objective.losses.items() if loss.needs.whole_batch]
        if apart and protocol.accumulate > 1:
            size = protocol.batch_size // protocol.accumulate
            log.info("note: %s compares images with each other, and sees %d of them at a time", ", ".join(apart), size)
        if self.unlabelled:
            self._say_unlabelled()
        log.info(
            "%s on %s, %d classes, %d + %d images of %d x %d, %s, %s: %s",
            options.experiment.method, self.dataset.name, self.dataset.num_classes, len(self.dataset.train),
            len(self.dataset.eval), self.dataset.image_size, self.dataset.image_size, self.device,
            options.run.precision, self.directory,
        )  # fmt: skip

    def _say_unlabelled(self) -> None:
        numbers = numbers_of(self.options.protocol.batch_size, self.unlabelled.share)
        log.info(
            "unlabelled %d images, of a batch %d labelled and %d of these; %d steps an epoch",
            len(self.unlabelled.pictures), *numbers, len(self.train_loader),
        )  # fmt: skip
        if not self.trains_classifier:
            log.info(
                "note: nothing trains the classifier, so its accuracy says nothing, and the last epoch counts as the "
                "best; measure the features with probe=True, or go on with labels from these weights, init="
            )

    def _open_cache(self, checkpoint: dict[str, Any] | None) -> TeacherCache | None:
        """Where what the teacher says comes from in place of the teacher, where that is asked for."""
        if self.options.pair is None or self.options.pair.teacher_cache is None:
            return None
        cache = open_cache(
            self.options,
            self.objective.without_teacher(),
            self.dataset,
            self.data["images"]["train"],
            device=self.device,
            autocast=self.autocast,
        )
        done = checkpoint["epoch"] if checkpoint else 0
        cache.announce(done + 1, self.options.protocol.epochs)
        return cache

    def _teacher(self) -> Teacher | None:
        """Who teaches, in the steps or through what is kept of it."""
        return self.cache.teacher if self.cache else self.objective.teacher

    def _synchronise_norms(self) -> None:
        """Let BatchNorms that train see the batches of all processes, where that is asked for."""
        if member().size == 1 or not self.options.run.sync_bn:
            return
        synchronise_(self.model, self.device)
        for loss in self.objective.losses.values():
            if not loss.needs.whole_batch:  # which sees all of it anyway
                synchronise_(loss, self.device)

    def _on_all_processes(self) -> nn.Module:
        """What a step calls: the objective, or what gives it the gradients of all processes."""
        if member().size == 1:
            return self.objective
        batch = noise(2, self.dataset, self.device)
        if self.cache:
            batch = batch._replace(taught=self.cache.blank(2))
        return parallel(self.objective, batch, self.autocast())

    def _make_average(self, checkpoint: dict[str, Any] | None) -> Average | None:
        """The average of the student, where it is the teacher or asked for; a run that has one keeps it."""
        if self.options.pair and self.options.pair.teacher == EMA:
            module = self.objective.teacher.network.module
            module.load_state_dict(self.model.state_dict())  # which may start from a file
        elif self.options.job.average or "average" in (checkpoint or ()):
            module = build_copy(with_inputs(self.options), self.dataset, self.model).module
        else:
            return None
        module = module.to(self.device, memory_format=torch.channels_last)
        return Average(module, self.model, self.options.protocol.ema_decay)

    def _check_teacher(self) -> TeacherAccuracy | None:
        """Say how good the teacher is on the evaluation images; None where there is none to be measured beforehand.

        That is none, the average of the student, and one of other classes or without a classifier, which teaches by its
        maps.

        Raises:
            ValueError: it is no better than guessing, and `allow_poor_teacher` is not set.
        """
        teacher, pair = self._teacher(), self.options.pair
        if teacher is None or pair.teacher == EMA or not teacher.knows_classes:
            return None
        network = nn.Sequential(teacher.input, teacher.network.module).eval()

        def measure(dataset: Dataset) -> float:
            teacher.to(self.device)
            return evaluate(network, self.loader(dataset, "eval", member=member()), autocast=self.autocast())["top1"]

        accuracy = TeacherAccuracy(
            pair.teacher,
            teacher.identity,
            evaluated_on(self.data, self.options.data.val_split, teacher.seen),
            seen=teacher.seen,
            localpath=Path(self.options.run.localpath),
            trained_in=self.training_directory(pair.teacher_experiment or ""),
        )
        accuracy.check(self.dataset, measure, allow_poor=self.options.job.allow_poor_teacher)
        return accuracy

    def _start_or_continue(self, source: Path | None, checkpoint: dict[str, Any] | None) -> None:
        self.epoch = 0
        self.meter = Meter(self.device)
        self.best: dict[str, Any] = dict(NO_BEST)
        self.history: list[dict[str, Any]] = []
        self.seconds_before = 0.0
        self.images_per_second = 0.0
        self.started = time.perf_counter()
        if source:
            self._continue_from(source, checkpoint)
        elif backup := by_first(set_aside, self.directory):
            log.info("starting from scratch: the earlier run is now in %s", backup)

    def _continue_from(self, source: Path, checkpoint: dict[str, Any]) -> None:
        check_classes(source, checkpoint["data"]["classes"], self.dataset.classes, dataset=self.dataset.name)
        say_other_images(checkpoint["data"], self.data)
        load_strictly(
            self.model, checkpoint["model"], source=source, what=f"the network of {self.options.job.run_name}"
        )
        load_strictly(self.objective.losses, checkpoint["losses"], source=source, what="the losses of this experiment")
        if self.average:
            self._restore_average(source, checkpoint)
        if self.cache:
            self.cache.epochs_read = checkpoint.get("teacher_cache", {}).get("epochs_read", 0)
        with names_entry(source, "optimizer"):
            load_optimizer(self.optimizer, checkpoint["optimizer"])
        with names_entry(source, "random"):
            restore_random_states(checkpoint["random"], self.device)
        self.epoch = checkpoint["epoch"]
        self.history = checkpoint.get("history", [])  # checkpoints once had none
        self.seconds_before = checkpoint["seconds"]
        self.images_per_second = checkpoint["images_per_second"]
        self._say_changes(source, checkpoint)
        # A run whose first epochs another teacher has taught must not pass for one of the present teacher.
        self.taught_by = {key: checkpoint.get(key) for key in FINGERPRINTS}
        if source.name == STOPPED:
            with names_entry(source, "unfinished"):
                self.meter.restore(checkpoint["unfinished"])
        self.best = by_first(recover_files, self.directory, source, checkpoint)
        if member().is_first:
            forget_measurements(self.directory, epoch=self.epoch, best_epoch=self.best["epoch"])
        log.info("continuing after %s of %d", self._position(), self.options.protocol.epochs)

    def _restore_average(self, source: Path, checkpoint: dict[str, Any]) -> None:
        if "average" not in checkpoint:
            raise ValueError(
                f"{source} has no average of the student, and one of the steps that are left is none of the run; begin "
                "again with checkpoint=0, or go on without average=True and teacher=ema"
            )
        what = f"the average of the network of {self.options.job.run_name}"
        load_strictly(self.average.module, checkpoint["average"], source=source, what=what)

    def _say_changes(self, source: Path, checkpoint: dict[str, Any]) -> None:
        """Mention what is otherwise than in the epochs so far."""
        is_recorded = bool(self._results_of_these_epochs())
        names = check_options(source, checkpoint, self.options.flat, is_recorded=is_recorded)
        for key, name in FINGERPRINTS.items():
            if checkpoint.get(key, self.taught_by[key]) != self.taught_by[key]:  # older checkpoints do not say
                names.append(name)
        known = checkpoint.get("inputs", {})
        names += [f"what the {role} sees" for role, now in self.inputs.items() if known.get(role, now) != now]
        if len(checkpoint["random"].get("ranks", [None])) != member().size:
            names.append("the number of processes")
        if names:
            log.info("note: changed since that epoch: %s", ", ".join(names))

    def _position(self) -> str:
        if not self.meter.num_steps:
            return f"epoch {self.epoch}"
        return f"step {self.meter.num_steps} of {len(self.train_loader)} in epoch {self.epoch + 1}"

    def _results_of_these_epochs(self) -> Results:
        """What `results.json` holds, if no epoch is left and it is that of the very epochs that are done; or {}."""
        if self.epoch < self.options.protocol.epochs:
            return {}
        try:
            results = read_results(self.directory)
        except ValueError:
            return {}
        found = (results.get("mode"), results.get("epochs"), results.get("history", []))
        return results if found == ("train", self.epoch, self.history) else {}

    def _run_epoch(self, epoch: int) -> None:
        self.epoch_started = time.perf_counter() - self.meter.seconds
        self.line.say(f"epoch {epoch} of {self.options.protocol.epochs}")
        trained = self._train(epoch)
        self._average_statistics()
        steps = len(self.train_loader)
        num_images = steps * self.options.protocol.batch_size
        self.images_per_second = num_images / (time.perf_counter() - self.epoch_started)
        self.measured = {name: self._evaluate(network, epoch) for name, network in self.evaluated.items()}
        tested = {name: {key: found[key] for key in FIGURES} for name, found in self.measured.items()}
        self.epoch = epoch
        improved = tested["eval"]["top1"] > self.best["top1"] or not self.trains_classifier
        if improved:
            self.best = {"top1": tested["eval"]["top1"], "epoch": epoch}
        done = {
            "epoch": epoch,
            "learning_rate": learning_rate(self.options.protocol, epoch, steps, steps),  # of the last step
            "images_per_second": self.images_per_second,
            "seconds": time.perf_counter() - self.epoch_started,
            "train": trained,
            **tested,
            "statistics": self.meter.summary(),
            "scales": self.objective.scales(),
        }
        self.history.append(done)
        self.meter = Meter(self.device)
        # The curves first: what a killed run wrote of an epoch that it did not save is replaced when it is done again.
        self._draw(done)
        self._save(improved)
        self._save_progress("running")
        self._log_epoch(done)

    def _average_statistics(self) -> None:
        """Let all processes have the same running statistics, before they are evaluated or saved."""
        average_statistics(self.model, self.objective.losses, *([self.average.module] if self.average else []))

    def _evaluate(self, network: nn.Module, epoch: int) -> dict[str, Any]:
        """What a network reaches behind an epoch."""
        images = self.line.over(self.stop.between(self.eval_loader))
        tested = evaluate(network, images, autocast=self.autocast())
        if not math.isfinite(tested["loss"]):
            raise self._diverged("the loss of the evaluation", tested["loss"], f"epoch {epoch}")
        return tested

    def _train(self, epoch: int) -> dict[str, float]:
        """What is left of a pass over the training images; mean losses and accuracy in percent of the whole of it."""
        self.objective.train()
        for norm in self.frozen_norms:
            norm.eval()
        self.objective.on_epoch(epoch, self.options.protocol.epochs)
        meter, loader = self.meter, self.train_loader
        num_unlabelled = 0
        if self.unlabelled:
            num_unlabelled = numbers_of(self.options.protocol.batch_size, self.unlabelled.share)[1] // member().size
        if member().size > 1 and meter.num_steps == 0:  # what networks draw, dropout for instance, is another elsewhere
            torch.manual_seed(derive_seed(self.options.run.seed, epoch, member().rank))
        loader.set_epoch(epoch, skip=meter.num_steps)
        batches = self.cache.over(loader, epoch, skip=meter.num_steps) if self.cache else loader
        for batch in self.line.over(self.stop.between(batches)):
            step = meter.num_steps + 1
            set_learning_rate(self.optimizer, learning_rate(self.options.protocol, epoch, step, len(loader)))
            looked_at = step % self.options.run.disp_step == 0 or step == len(loader)
            result = self.step(batch, with_statistics=looked_at)
            if self.average:
                self.average.update((epoch - 1) * len(loader) + step)
            meter.add(result, batch.labels, batch.other_labels, batch.share, num_unlabelled=num_unlabelled)
            if looked_at:
                self._look(epoch, result)
        return meter.means()

    def _look(self, epoch: int, result: Step) -> None:
        """What is read from the device now and then."""
        means = self.meter.means()
        self._check_finite(means, epoch)
        statistics = self.meter.look(result.statistics)
        self.curves.add((epoch - 1) * len(self.train_loader) + self.meter.num_steps, "batch", statistics)
        top1 = {"top1": f"{means['top1']:.1f}%"} if "top1" in means else {}  # there are labelled images
        self.line.set_postfix(loss=f"{means['loss']:.3f}", **top1)

    def _check_finite(self, means: dict[str, float], epoch: int) -> None:
        """Stop when a loss or a trained tensor is not finite, and name the first."""
        if not all(map(math.isfinite, means.values())):
            name, step = self.meter.first_non_finite()
            raise self._diverged(name, means[name], f"step {step} of epoch {epoch}")
        bad = first_non_finite([*self.model.state_dict().items(), *self.objective.losses.state_dict().items()])
        if bad := next(filter(None, of_all(bad)), None):
            raise self._diverged(*bad, f"epoch {epoch}")

    def _diverged(self, name: str, value: float, when: str) -> FloatingPointError:
        state = f"the last good state is epoch {self.epoch}" if self.epoch else "no epoch was good"
        remedy = f"try a lower learning_rate than {self.options.protocol.learning_rate}"
        return FloatingPointError(f"{name} became {value} in {when}; {state} ({remedy})")

    def _draw(self, done: dict[str, Any]) -> None:
        """An epoch's points on the curves, and behind the first epoch some of its images as the network saw them."""
        step = done["epoch"] * len(self.train_loader)
        rates = {key: done[key] for key in ("learning_rate", "images_per_second")}
        self.curves.add(step, "train", done["train"] | rates)
        for name in self.evaluated:
            self.curves.add(step, name, done[name])
        self.curves.add(step, "scales", done["scales"])
        if done["epoch"] == 1:
            self.train_loader.set_epoch(1)
            self.curves.add_images(step, "input/augmented", first_images(self.train_loader))
        self.curves.flush()

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "losses": self.objective.losses.state_dict(),
            **({"average": self.average.module.state_dict()} if self.average else {}),
            "optimizer": self.optimizer.state_dict(),
            "random": random_states(),
            "epoch": self.epoch,
            "epochs": self.options.protocol.epochs,
            "best": self.best,
            "history": self.history,
            "seconds": self._seconds(),
            "images_per_second": self.images_per_second,
            "config": self.options.flat,
            **self.taught_by,
            "init_fingerprint": self.began_with,
            "data": self.data,
            **self._facts_of_cache(),
            **self._facts_of_classifier(),
            "inputs": self.inputs,
        }

    def _save(self, improved: bool) -> None:
        """The last before the best: a run that is killed between them saves the best when it goes on.

        What is kept comes first: nothing would bring it later.
        """
        content = self._state()
        if self.options.run.keep_every and self.epoch % self.options.run.keep_every == 0:
            save_checkpoint(kept_epoch(self.directory, self.epoch), content)
        save_last(self.directory, content)
        if improved:
            save_checkpoint(self.directory / BEST, content)

    def _save_unfinished(self) -> None:
        """The state between two steps, for a run that was told to stop; one that has diverged has none."""
        self._check_finite(self.meter.means(), self.epoch + 1)
        self._average_statistics()
        self.meter.seconds = time.perf_counter() - self.epoch_started
        save_checkpoint(self.directory / STOPPED, self._state() | {"unfinished": self.meter.state()})
        self._save_progress("stopped")
        wait_for_all()
        log.info("stopped after %s, saved in %s", self._position(), self.directory / STOPPED)

    def _save_progress(self, state: str) -> None:
        progress = {
            "state": state,
            "epoch": self.epoch,
            "epochs": self.options.protocol.epochs,
            "step": self.meter.num_steps,
            "steps_per_epoch": len(self.train_loader),
            "best_top1": self.best["top1"] if self.best["epoch"] else None,
            "best_epoch": self.best["epoch"] or None,
            "seconds": self._seconds(),
            "history": self.history,
        }
        save_progress(self.directory, self.facts() | progress)

    def _log_epoch(self, done: dict[str, Any]) -> None:
        trained, epochs = done["train"], self.options.protocol.epochs
        parts = " ".join(f"{name} {trained[name]:.3f}" for name in trained if name not in ("loss", "top1"))
        tested = "  ".join(f"{name} {done[name]['top1']:.2f}%" for name in self.evaluated)
        if "top1" in trained:
            tested = f"train {trained['top1']:.2f}%  {tested}"
        log.info(
            "epoch %*d/%d  loss %.3f (%s)  %s  best %.2f%% (%d)  lr %.4g  %.0f img/s  left %s",
            len(str(epochs)), self.epoch, epochs, trained["loss"], parts, tested,
            self.best["top1"], self.best["epoch"], done["learning_rate"], done["images_per_second"],
            duration(done["seconds"] * (epochs - self.epoch)),
        )  # fmt: skip

    def _finish(self) -> Results:
        split, chosen = "eval", self.epoch
        trained = fingerprint(self.model.state_dict())
        if self.options.data.val_split:  # the held-out images have chosen an epoch: the test is looked at once
            split, chosen = "test", self.best["epoch"]
            wait_for_all()  # the first has saved it
            best = load_best(self.directory)
            self.model.load_state_dict(best["model"])
            if self.average:
                self.average.module.load_state_dict(best["average"])
        measured = self.measured if self.num_phases == 1 else self._measure(split)
        tested = measured["eval"]
        results = self.facts() | {
            "epochs": self.epoch,
            "top1": tested["top1"],
            "top5": tested["top5"],
            **by_class(tested["class_counts"], self.dataset.classes),
            "best_top1": self.best["top1"],
            "best_epoch": self.best["epoch"],
            "images_per_second": self.images_per_second,
            "eval_images_per_second": tested["images_per_second"],
            "seconds": self._seconds(),
            "fingerprint": trained,
            **count_parameters(self.model),
            **count_multiply_adds(self.model, self.seen.image_size),
            "history": self.history,
        }
        if self.options.data.val_split:
            results |= {"best_top1": tested["top1"], "val_top1": self.best["top1"]}
        if self.average:
            results |= self._results_of_average(measured["average"], chosen)
        found, held_out = accuracies(tested, self.dataset.num_classes), ""
        if self.options.data.val_split:
            held_out = (
                f" on held-out images, where the last epoch {self.epoch} has {self.history[-1]['eval']['top1']:.2f}%"
            )
        log.info(
            "done: %s epoch %d %s; best epoch %d %.2f%% top-1%s; %s", "chosen" if held_out else "last", chosen, found,
            self.best["epoch"], self.best["top1"], held_out, duration(results["seconds"]),
        )  # fmt: skip
        complete = update_results(
            self.directory,
            lambda earlier: results | valid_measurements(earlier, epoch=self.epoch, best_epoch=self.best["epoch"]),
        )
        remove_progress(self.directory)
        return complete

    def _measure(self, split: str) -> dict[str, dict[str, Any]]:
        """What the student, and the average where there is one, reach on a split, where no epoch has measured it."""
        num_images = len(self.dataset.split(split))
        total = num_images * len(self.evaluated)
        what, last = f"evaluation of {num_images} images", self.num_phases
        with phase(what, total, number=last, count=last, starts_up=True) as line:
            loader = self.loader(self.dataset, split, member=member())
            return {
                name: evaluate(network, line.over(loader), autocast=self.autocast())
                for name, network in self.evaluated.items()
            }

    def _results_of_average(self, tested: dict[str, float], chosen: int) -> Results:
        """As those of the student, by names of their own; the held-out images choose one epoch, by the student."""
        best = {"epoch": chosen, "average": tested}
        if self.trains_classifier and not self.options.data.val_split:
            best = max(self.history, key=lambda done: done["average"]["top1"])  # the first of them
        top1, epoch = best["average"]["top1"], best["epoch"]
        log.info(
            "the average of the weights: epoch %d %s; best %.2f%% at epoch %d",
            chosen, accuracies(tested, self.dataset.num_classes), top1, epoch,
        )  # fmt: skip
        return {
            "average_top1": tested["top1"],
            "average_top5": tested["top5"],
            "best_average_top1": top1,
            "best_average_epoch": epoch,
        }

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started
