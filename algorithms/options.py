"""What every option may be, checked before any work starts."""

from typing import Any

AT_LEAST = {
    "epochs": 1,
    "batch_size": 2,  # BatchNorm needs two
    "test_batch_size": 1,
    "disp_step": 1,
    "num_words": 2,
    "subclasses_per_class": 1,
    "lda_components": 1,
    "downscale": 1,
    "image_size": 1,
    "checkpoint": -1,
    "keep_every": 0,
    "kmeans": 0,
    "LDA": 0,
    "ksubset": 0,
    "val_split": 0,
    "num_workers": 0,
    "seed": 0,
    "momentum": 0,
    "weight_decay": 0,
}
ABOVE = {"learning_rate": 0, "lr_factor": 0, "temperature": 0}
# Keys whose default is None, and what else they may be.
OPTIONAL_TYPES = {
    "image_size": int,
    "mean": list,
    "std": list,
    "data_dir": str,
    "memmap_dir": str,
    "fname": str,
    "weights": str,
    "teacher_weights": str,
    "published_weights": str,
    "trained_as": str,
    "codebook": str,
    "decisions": str,
}
MAX_SEED = 2**32 - 1


def check_options(config: dict[str, Any]) -> None:
    """Refuse values that cannot work.

    Raises:
        ValueError: names the first such option, its value, and what it may be.
    """
    for key, kind in OPTIONAL_TYPES.items():
        value = config.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(f"{key}={value!r} must be of type {kind.__name__}, or None")
    for key, bound in AT_LEAST.items():
        if config.get(key) is not None and not config[key] >= bound:
            raise ValueError(f"{key}={config[key]!r} must be at least {bound}")
    for key, bound in ABOVE.items():
        if key in config and not config[key] > bound:
            raise ValueError(f"{key}={config[key]!r} must be above {bound}")
    if config["seed"] > MAX_SEED:
        raise ValueError(f"seed={config['seed']} must be at most {MAX_SEED}")
    if not all(isinstance(milestone, int) and milestone > 0 for milestone in config["milestones"]):
        raise ValueError(f"milestones={config['milestones']!r} must be a list of epochs, like [150, 180, 210]")
    if config["nesterov"] and not config["momentum"]:
        raise ValueError("nesterov=True needs a momentum above 0")
