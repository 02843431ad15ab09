"""What the options of a run say of a cache of its teacher's logits: whether there can be one, and what it follows from.

Losses that read more of a teacher than its logits need the teacher itself. What the rows of a cache follow from is its
identity: the teacher, its input, the images, and the options that shape views (`distillation/teacher_cache.py`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from config.options import EMA, GROUPS, OPTIONS, Options
from dataloaders import Dataset
from distillation.expressions import brought_by, losses_of, needs_teacher, transforms_of
from distillation.losses import LogitLoss, Loss, find_loss, find_transform, list_losses
from distillation.objective import Teacher
from distillation.signals import Wanted

FORMAT = "letkd-teacher-logits-1"

# Groups of options that say what is done, and which networks and losses; their fingerprints tell what bears on logits.
OF_NO_VIEWS = frozenset(
    {
        "job", "offline", "prediction", "report", "study", "experiment", "network", "pair", "words", "words_map",
        "layers", "decisions", "subclasses", "control",
    }
)  # fmt: skip
# Options of the other groups that bear on a training and neither on what its images look like nor on what a teacher
# says of them. One that is not here makes another cache.
NOT_OF_VIEWS = frozenset(
    {
        "view_seed",  # is there as a number
        "mean", "std", "image_size",  # are those of the data set that is open
        "sync_bn", "protocol", "epochs", "accumulate", "optimizer", "learning_rate", "learning_rates", "freeze",
        "schedule", "milestones", "lr_factor", "final_learning_rate", "warmup", "warmup_steps", "momentum", "nesterov",
        "weight_decay", "decay_norms_and_biases", "betas", "eps", "clip_gradients", "dropout", "drop_path", "ema_decay",
    }
)  # fmt: skip
BEARING = ("result", "training", "images")


# --- what may be cached ----------------------------------------------------------------------------------------------


def check_cache(options: Options) -> None:
    """Refuse a cache where nothing could be in it, before anything is loaded.

    Raises:
        ValueError: names the options.
    """
    pair = options.pair
    if pair is None:
        return
    if pair.teacher_cache is None:
        for key in ("teacher_cache_top", "teacher_cache_dir"):
            if (value := getattr(pair, key)) is not None:
                raise ValueError(
                    f"{key}={value} is of a cache, and there is none; leave it out, or teacher_cache=logits"
                )
        return
    if not needs_teacher(options):
        raise ValueError(f"{options.experiment.method} reads no teacher: leave out teacher_cache={pair.teacher_cache}")
    if options.data.unlabelled is not None:
        raise ValueError(
            f"teacher_cache={pair.teacher_cache} keeps logits of labelled images alone; leave it out, or unlabelled="
        )
    if pair.teacher == EMA:
        raise ValueError(
            "teacher=ema changes in every step, and nothing that it says can be kept; leave out "
            f"teacher_cache={pair.teacher_cache}"
        )
    if made := {key: "more" for key in losses_of(options) if find_loss(key).prepared}:
        _refuse(options, made)


def reads_logits_alone(options: Options) -> bool:
    """Whether a run reads a teacher, and of it what a cache keeps, as far as its losses say before they are built."""
    losses = [loss for key in losses_of(options) if (loss := find_loss(key)).needs_teacher]
    transforms = [find_transform(name) for names in transforms_of(options.experiment.method).values() for name in names]
    is_kept = all(loss.kind == "logits" for loss in losses)
    is_kept &= not any(_beside_logits(transform.needs.teacher) for transform in transforms)
    return bool(losses) and is_kept and options.pair.teacher != EMA


def refuse_other_readers(options: Options, losses: Mapping[str, Loss]) -> None:
    """Refuse a cache where a loss reads more of the teacher than its logits.

    Args:
        losses: by key.

    Raises:
        ValueError: names the losses and what they read.
    """
    if options.pair is not None and options.pair.teacher_cache is not None:
        read = {key: _beside_logits(loss.needs.teacher) for key, loss in losses.items()}
        if more := {key: what for key, what in read.items() if what}:
            _refuse(options, more)


def _refuse(options: Options, more: Mapping[str, str]) -> None:
    """Refuse a cache because of losses by key, and what each reads, in words."""
    summed = options.experiment.method.split("+")
    called = {key: next((name for name in summed if key in brought_by(name)), key) for key in more}
    reading = dict.fromkeys(f"{called[key]} reads {what}" for key, what in more.items())
    known = (loss.method for key in list_losses() if issubclass(loss := find_loss(key), LogitLoss) and loss.method)
    raise ValueError(
        f"teacher_cache={options.pair.teacher_cache} keeps the logits of the teacher alone, and {', '.join(reading)} "
        f"of it; leave it out, or choose from {', '.join(known)}"
    )


def _beside_logits(wanted: Wanted) -> str:
    """What is read of a teacher beside its logits, in words."""
    called = {
        "maps": "maps",
        "preact": "maps",
        "inner": "scores",
        "pooled": "the pooled vector",
        "head": "the classifier",
    }
    there = dict.fromkeys(
        called[field.name] for field in fields(wanted) if field.name in called and getattr(wanted, field.name)
    )
    return " and ".join(there)


# --- what tells a cache from others ----------------------------------------------------------------------------------


def identity_of(options: Options, teacher: Teacher, dataset: Dataset, images: Mapping[str, Any]) -> dict[str, Any]:
    """All that the rows follow from, as plain values.

    Args:
        dataset: as it trains, without held-out images.
        images: what tells the training images from others, before any are held out (`dataloaders.facts.image_facts`).
    """
    known = {
        "format": FORMAT,
        "teacher": options.pair.teacher,
        "teacher_fingerprint": teacher.identity,
        "input": teacher.input.key,
        "images": images,
        "number": len(dataset.split("train")),
        "classes": dataset.num_classes,
        "image_size": dataset.image_size,
        "mean": dataset.mean,
        "std": dataset.std,
        "padding": dataset.padding,
        "flip": dataset.flip,
        "view_seed": options.run.seed_of_views,
        "options": view_options(options),
        "top": options.pair.teacher_cache_top,
    }
    return json.loads(json.dumps(known, default=str))


def view_options(options: Options) -> dict[str, Any]:
    """The options that shape views, and what a teacher says of them, where they are not the default.

    Those with their default are left out, so that a cache outlives new options.
    """
    found = {}
    for name, group in GROUPS.items():
        if name in OF_NO_VIEWS or (values := getattr(options, name)) is None:
            continue
        for field in fields(group):
            said, value = OPTIONS[field.name], getattr(values, field.name)
            if said.bears in BEARING and field.name not in NOT_OF_VIEWS and value != said.default:
                found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """A value of an option, in which 1 and 1.0 are the same number."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def fingerprint_of(identity: Mapping[str, Any]) -> str:
    """SHA-256 of what `identity_of` returns."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
