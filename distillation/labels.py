"""Which losses of an experiment read labels, and what that means where images have none."""

from config.options import PUBLISHED_NAMES, Options
from distillation.expressions import losses_of, transforms_of, weights_of
from distillation.losses import Loss, find_loss, find_transform


def check_labels(options: Options, num_labelled: int) -> None:
    """Refuse losses that images without labels do not suffice for, or that are no use of them.

    Args:
        num_labelled: images of a batch that have a label; others have none.

    Raises:
        ValueError: names the losses, and what to do.
    """
    readers = {key: find_loss(key) for key in losses_of(options) if _weighted(find_loss(key), options)}
    reading = {key: loss for key, loss in readers.items() if _reads_labels(key, loss, options)}
    if strict := [key for key, loss in reading.items() if loss.labels == "all"]:
        raise ValueError(
            f"{strict[0]} does not say what it makes of images without labels; leave out unlabelled=, or say it in its "
            'class: labels = "none" of one that reads none (docs/own-method.md)'
        )
    if len(reading) == len(readers):
        raise ValueError(
            f"all that this run minimises reads labels ({', '.join(reading)}): leave out unlabelled=, or choose a "
            "method that learns from images without them, like KD, FitNet or letKD-1"
        )
    if reading and num_labelled == 0:
        weights = ", ".join(f"{name}=0" for key, loss in reading.items() for name in _weight_options(loss, options))
        raise ValueError(
            f"unlabelled_share={options.data.unlabelled_share:g} leaves no labelled image in a batch, and "
            f"{', '.join(reading)} reads labels; choose a smaller share, or leave it out of the loss: {weights}"
        )


def learns_without_labels(options: Options) -> bool:
    """Whether anything that a run minimises is made of images without labels."""
    losses = {key: find_loss(key) for key in losses_of(options)}
    return any(_weighted(loss, options) and not _reads_labels(key, loss, options) for key, loss in losses.items())


def _weighted(loss: type[Loss], options: Options) -> bool:
    weights = weights_of(options)
    return any(weights[loss.term_name(term)] for term in loss.terms)


def _weight_options(loss: type[Loss], options: Options) -> list[str]:
    """Of its terms, by the names that they have in the experiment."""
    names = [loss.weight_option(term) for term in loss.terms]
    return [PUBLISHED_NAMES.get(name, name) for name in names] if options.words else names


def _reads_labels(key: str, loss: type[Loss], options: Options) -> bool:
    """Whether a loss, or what stands in front of it, does."""
    transforms = transforms_of(options.experiment.method).get(key, ())
    return loss.labels != "none" or any(find_transform(name).reads_labels for name in transforms)
