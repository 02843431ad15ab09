"""What the options of a run say of a cache of its teacher: whether there can be one, and what it follows from.

A cache of logits serves the losses that read nothing else of a teacher, one of all signals every loss. What the rows of
a signal follow from is their identity: the teacher, its input, the images, and the options that shape views
(`distillation/teacher_cache.py`).
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from config.options import EMA, GROUPS, OPTIONS, Options
from dataloaders import Dataset
from distillation.expressions import brought_by, losses_of, needs_teacher, transforms_of
from distillation.losses import Loss, find_loss, find_transform
from distillation.objective import Teacher
from distillation.signals import Wanted

LOGITS = "logits"
FORMAT_OF_LOGITS, FORMAT = "letkd-teacher-logits-1", "letkd-teacher-signal-1"

# Groups of options that say what is done, and which networks and losses; their fingerprints tell what bears on it.
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
                    f"{key}={value} is of a cache, and there is none; leave it out, or teacher_cache=logits or all"
                )
        return
    if pair.teacher_cache_top is not None and pair.teacher_cache != LOGITS:
        raise ValueError(
            f"teacher_cache_top={pair.teacher_cache_top} is of a cache of logits alone, and "
            f"teacher_cache={pair.teacher_cache} keeps all as it is; leave it out, or teacher_cache=logits"
        )
    if not needs_teacher(options):
        raise ValueError(f"{options.experiment.method} reads no teacher: leave out teacher_cache={pair.teacher_cache}")
    if options.data.unlabelled is not None:
        raise ValueError(
            f"teacher_cache={pair.teacher_cache} keeps what is said of labelled images alone; leave it out, or "
            "unlabelled="
        )
    if pair.teacher == EMA:
        raise ValueError(
            "teacher=ema changes in every step, and nothing that it says can be kept; leave out "
            f"teacher_cache={pair.teacher_cache}"
        )
    if pair.teacher_cache == LOGITS and (
        made := {key: "more" for key in losses_of(options) if find_loss(key).prepared}
    ):
        _refuse(options, made)


def can_read_cache(options: Options) -> bool:
    """Whether a run reads a teacher, and of it what its cache keeps, as far as its losses say before they are built."""
    losses = [loss for key in losses_of(options) if (loss := find_loss(key)).needs_teacher]
    if not losses or options.pair.teacher == EMA:
        return False
    if options.pair.teacher_cache != LOGITS:
        return True
    transforms = [find_transform(name) for names in transforms_of(options.experiment.method).values() for name in names]
    is_kept = all(loss.kind == "logits" for loss in losses)
    return is_kept and not any(_beside_logits(transform.needs.teacher) for transform in transforms)


def refuse_other_readers(options: Options, losses: Mapping[str, Loss]) -> None:
    """Refuse a cache of logits where a loss reads more of the teacher.

    Args:
        losses: by key.

    Raises:
        ValueError: names the losses and what they read.
    """
    if options.pair is not None and options.pair.teacher_cache == LOGITS:
        read = {key: _beside_logits(loss.needs.teacher) for key, loss in losses.items()}
        if more := {key: what for key, what in read.items() if what}:
            _refuse(options, more)


def _refuse(options: Options, more: Mapping[str, str]) -> None:
    """Refuse a cache because of losses by key, and what each reads, in words."""
    summed = options.experiment.method.split("+")
    called = {key: next((name for name in summed if key in brought_by(name)), key) for key in more}
    reading = dict.fromkeys(f"{called[key]} reads {what}" for key, what in more.items())
    raise ValueError(
        f"teacher_cache=logits keeps the logits of the teacher alone, and {', '.join(reading)} of it; leave it out, or "
        "teacher_cache=all"
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


def identity_of(
    options: Options, teacher: Teacher, dataset: Dataset, images: Mapping[str, Any], *, signal: str
) -> dict[str, Any]:
    """All that the rows of a signal follow from, as plain values.

    Args:
        dataset: as it trains, without held-out images.
        images: what tells the training images from others, before any are held out (`dataloaders.facts.image_facts`).
        signal: its name in `Signals.tensors`.
    """
    if options.pair.teacher_cache == LOGITS:
        kept = {"format": FORMAT_OF_LOGITS, "top": options.pair.teacher_cache_top}
    else:
        place = teacher.network.places_read().get(signal)
        where = place and {"path": place.path, "is_input": place.is_input, "shape": [place.channels, *place.grid]}
        kept = {"format": FORMAT, "signal": where or signal}  # of a place one name is as good as another
    known = kept | {
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
