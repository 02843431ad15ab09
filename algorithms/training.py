"""The training loop that all methods share.

A step reads nothing back from the device: losses and counts accumulate there and are read every `disp_step` steps and
at the end of an epoch. All randomness of an epoch follows from (seed, epoch), so a run that is stopped and continued at
an epoch's end is the run that was not stopped.

One process trains on one device. For one process a GPU, wrap `self.method` (its forward is the whole step), give the
loader a rank, and let rank 0 alone keep records: nothing else here knows how many processes there are.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.base import Algorithm, Requirement, Results, data_facts
from algorithms.checkpoints import (
    BEST,
    LAST,
    NEWEST,
    PREVIOUS,
    find_checkpoint,
    kept_epoch,
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
    save_last,
    set_aside,
)
from algorithms.complexity import count_multiply_adds
from algorithms.evaluation import count_parameters, evaluate
from algorithms.methods import Step, find_method
from algorithms.records import RESULTS, Curves, duration, log, progress_bar, save_results
from algorithms.supervision import missing_supervision
from algorithms.weights import load_strictly
from dataloaders import make_train_loader


class Training(Algorithm):
    """Trains the experiment's method from scratch or from a checkpoint, and evaluates it after every epoch."""

    mode = "train"

    def missing_requirements(self) -> Iterator[Requirement]:
        with torch.device("meta"):  # a name that does not exist stops here, before hours of preparation
            find_method(self.config["method"]).build_model(self.config, num_classes=2)
        if self.config["method"] != "classification":
            yield from missing_supervision(self.config)

    def _run(self) -> Results:
        self._build()
        self._start_or_continue()
        with Curves(self.directory, first_step=self.epoch * len(self.train_loader) + 1) as self.curves:
            while self.epoch < self.config["epochs"]:
                self._run_epoch(self.epoch + 1)
        return self._finish()

    def _build(self) -> None:
        config = self.config
        self.dataset = self.open_training_data()
        method = find_method(config["method"]).from_config(config, self.dataset.num_classes)
        self.method = method.to(self.device, memory_format=torch.channels_last)
        self.model = method.model
        self.optimizer = make_optimizer(self.method, config)
        self.train_loader = make_train_loader(
            self.dataset,
            batch_size=config["batch_size"],
            device=self.device,
            seed=config["seed"],
            num_workers=config["num_workers"],
        )
        self.eval_loader = self.loader(self.dataset, "eval")
        beyond = [milestone for milestone in config["milestones"] if milestone >= config["epochs"]]
        if beyond:
            log.info("note: milestones %s are not reached in %d epochs", beyond, config["epochs"])
        log.info(
            "%s on %s, %d classes, %d + %d images of %d x %d, %s, %s: %s",
            config["method"], self.dataset.name, self.dataset.num_classes, len(self.dataset.train),
            len(self.dataset.eval), self.dataset.image_size, self.dataset.image_size, self.device, config["precision"],
            self.directory,
        )  # fmt: skip

    def _start_or_continue(self) -> None:
        self.epoch = 0
        self.best: dict[str, Any] = {"top1": -1.0, "epoch": 0}
        self.seconds_before = 0.0
        self.images_per_second = 0.0
        self.started = time.perf_counter()
        number = self.config["checkpoint"]
        if number == NEWEST and not (self.directory / LAST).is_file():
            log.info("no checkpoint in %s yet: starting from scratch", self.directory)
            number = 0
        if number != 0:
            self._continue_from(find_checkpoint(self.directory, number))
            return
        if set_aside(self.directory, [RESULTS]):
            log.info("starting from scratch: the earlier run is now in %s", self.directory / "replaced")

    def _continue_from(self, source: Path) -> None:
        checkpoint = load_checkpoint(source)
        load_strictly(self.model, checkpoint["model"], source=source, what=f"the network of {self.config['config']}")
        load_strictly(self.method.heads, checkpoint["heads"], source=source, what="the heads of this method")
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        restore_random_states(checkpoint["random"])
        self.epoch = checkpoint["epoch"]
        self.best = checkpoint["best"]
        self.seconds_before = checkpoint["seconds"]
        self.images_per_second = checkpoint["images_per_second"]
        self._forget_later_epochs(source, checkpoint)
        changed = [
            key for key in self.config if self.config[key] != checkpoint["config"].get(key) and key not in FREE_KEYS
        ]
        if changed:
            log.info("note: changed since that epoch: %s", ", ".join(changed))
        log.info("continuing after epoch %d of %d", self.epoch, self.config["epochs"])

    def _forget_later_epochs(self, source: Path, checkpoint: dict[str, Any]) -> None:
        """After going back, no file of the run holds an epoch that is no longer part of it."""
        if source.name == LAST:
            return
        (self.directory / PREVIOUS).unlink(missing_ok=True)
        save_checkpoint(self.directory / LAST, checkpoint)
        best = self.directory / BEST
        if best.is_file() and load_checkpoint(best)["epoch"] > self.epoch:
            kept = kept_epoch(self.directory, self.best["epoch"])
            save_checkpoint(best, load_checkpoint(kept) if kept.is_file() else checkpoint)

    def _run_epoch(self, epoch: int) -> None:
        start = time.perf_counter()
        rate = learning_rate(self.config, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        trained = self._train(epoch)
        self.images_per_second = len(self.train_loader) * self.config["batch_size"] / (time.perf_counter() - start)
        tested = evaluate(self.model, self.eval_loader, autocast=self.autocast())
        self.epoch = epoch
        improved = tested["top1"] > self.best["top1"]
        if improved:
            self.best = {"top1": tested["top1"], "epoch": epoch}
        # The curves first: what a killed run wrote of an epoch that it did not save is replaced when it is done again.
        self.curves.add(epoch * len(self.train_loader), "train", trained | {"learning_rate": rate})
        self.curves.add(epoch * len(self.train_loader), "eval", {key: tested[key] for key in ("loss", "top1", "top5")})
        self.curves.flush()
        self._save(improved)
        self._log_epoch(trained, tested, rate, seconds=time.perf_counter() - start)

    def _train(self, epoch: int) -> dict[str, float]:
        """One pass over the training images; mean losses and accuracy in percent."""
        self.method.train()
        self.train_loader.set_epoch(epoch)
        meter = Meter(self.device)
        first_step = (epoch - 1) * len(self.train_loader)
        interval = self.config["disp_step"]
        with progress_bar(len(self.train_loader) * self.config["batch_size"], "img", f"epoch {epoch}") as bar:
            for step, (images, labels) in enumerate(self.train_loader, start=1):
                shown = step % interval == 0
                with self.autocast():
                    result = self.method(images, labels, with_statistics=shown)
                descend(self.optimizer, result.loss)
                meter.add(result, labels)
                bar.update(len(labels))
                if shown:
                    means = self._checked(meter.means(), epoch)
                    bar.set_postfix(loss=f"{means['loss']:.3f}", top1=f"{means['top1']:.1f}%")
                    self.curves.add(first_step + step, "batch", {k: v.item() for k, v in result.statistics.items()})
        return self._checked(meter.means(), epoch)

    def _checked(self, means: dict[str, float], epoch: int) -> dict[str, float]:
        for name, value in means.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} became {value} in epoch {epoch}; the last good state is epoch {self.epoch} "
                    f"(try a lower learning_rate than {self.config['learning_rate']})"
                )
        return means

    def _save(self, improved: bool) -> None:
        """The best before the last: a run that is killed between them does this epoch again, and nothing is lost."""
        content = {
            "model": self.model.state_dict(),
            "heads": self.method.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_states(),
            "epoch": self.epoch,
            "epochs": self.config["epochs"],
            "best": self.best,
            "seconds": self._seconds(),
            "images_per_second": self.images_per_second,
            "config": self.config,
            "data": data_facts(self.dataset),
        }
        if improved:
            save_checkpoint(self.directory / BEST, content)
        if self.config["keep_every"] and self.epoch % self.config["keep_every"] == 0:
            save_checkpoint(kept_epoch(self.directory, self.epoch), content)
        save_last(self.directory, content)

    def _log_epoch(self, trained: dict[str, float], tested: dict[str, float], rate: float, seconds: float) -> None:
        parts = " ".join(
            f"{name.removesuffix('_loss')} {trained[name]:.3f}" for name in trained if name.endswith("_loss")
        )
        log.info(
            "epoch %*d/%d  loss %.3f (%s)  train %.2f%%  eval %.2f%%  best %.2f%% (%d)  lr %.4g  %.0f img/s  left %s",
            len(str(self.config["epochs"])), self.epoch, self.config["epochs"], trained["loss"], parts, trained["top1"],
            tested["top1"], self.best["top1"], self.best["epoch"], rate, self.images_per_second,
            duration(seconds * (self.config["epochs"] - self.epoch)),
        )  # fmt: skip

    def _finish(self) -> Results:
        split, chosen = "eval", self.epoch
        if self.config["val_split"]:  # the held-out images have chosen an epoch: the test is looked at once
            split, chosen = "test", self.best["epoch"]
            self.model.load_state_dict(load_checkpoint(self.directory / BEST)["model"])
        tested = evaluate(self.model, self.loader(self.dataset, split), autocast=self.autocast())
        results = self.facts() | {
            "epochs": self.epoch,
            "top1": tested["top1"],
            "top5": tested["top5"],
            "best_top1": self.best["top1"],
            "best_epoch": self.best["epoch"],
            "images_per_second": self.images_per_second,
            "eval_images_per_second": tested["images_per_second"],
            "seconds": self._seconds(),
            **count_parameters(self.model),
            **count_multiply_adds(self.model, self.dataset.image_size),
        }
        if self.config["val_split"]:
            results |= {"best_top1": tested["top1"], "val_top1": self.best["top1"]}
        log.info(
            "done: epoch %d %.2f%% top-1, %.2f%% top-5; best %.2f%% at epoch %d%s; %s",
            chosen, tested["top1"], tested["top5"], self.best["top1"], self.best["epoch"],
            " (of held-out training images)" if self.config["val_split"] else "", duration(results["seconds"]),
        )  # fmt: skip
        return save_results(self.directory, results)

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started


# Keys that may differ between a run and its continuation without a word.
FREE_KEYS = frozenset(
    {"checkpoint", "num_workers", "disp_step", "cuda", "localpath", "prepare", "data_dir", "keep_every"}
)


def make_optimizer(method: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """SGD over everything in the method that trains, biases, scales and BatchNorm included, as the paper's."""
    return torch.optim.SGD(
        [parameter for parameter in method.parameters() if parameter.requires_grad],
        lr=config["learning_rate"],
        momentum=config["momentum"],
        nesterov=config["nesterov"],
        weight_decay=config["weight_decay"],
    )


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimisation step along the gradient of `loss`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def learning_rate(config: dict[str, Any], epoch: int) -> float:
    """The step schedule: `learning_rate * lr_factor ** (milestones passed)` in epoch 1, 2, ..."""
    passed = sum(epoch > milestone for milestone in config["milestones"])
    return config["learning_rate"] * config["lr_factor"] ** passed


class Meter:
    """Sums of a step's figures in one device tensor; reading them is the only synchronisation."""

    def __init__(self, device: torch.device):
        self.device = device
        self.names: list[str] = []
        self.sums = torch.zeros((), device=device)
        self.num_steps = 0
        self.num_images = 0

    @torch.no_grad()
    def add(self, step: Step, labels: Tensor) -> None:
        correct = (step.logits.argmax(dim=1) == labels).sum()
        self.names = ["correct", "loss", *step.terms]
        self.sums = self.sums + torch.stack(
            [correct.float(), step.loss.float(), *map(Tensor.float, step.terms.values())]
        )
        self.num_steps += 1
        self.num_images += len(labels)

    def means(self) -> dict[str, float]:
        """Mean of every loss, and `top1` in percent, since the meter was made."""
        correct, *losses = self.sums.tolist()
        means = {name: value / self.num_steps for name, value in zip(self.names[1:], losses, strict=True)}
        return means | {"top1": 100 * correct / self.num_images}
