"""Which losses of an experiment read labels, and what that means where images have none."""

from collections.abc import Sequence

from config.options import PUBLISHED_NAMES, Options
from distillation.expressions import losses_of, transforms_of, weights_of
from distillation.losses import Loss, find_loss, find_transform
from distillation.losses.base import Labels


def check_labels(options: Options, num_labelled: int) -> None:
    """Refuse losses that images without labels do not suffice for, or that are no use of them.

    Args:
        num_labelled: images of a batch that have a label; others have none.

    Raises:
        ValueError: names the losses, and what to do.
    """
    terms = _weighted_terms(options)
    reading = {term: loss for term, (loss, reads) in terms.items() if reads}
    keys = list(dict.fromkeys(loss.key for loss in reading.values()))
    transforms = transforms_of(options.experiment.method)
    if strict := [key for (key, _), loss in reading.items() if labels_read(loss, transforms.get(key, ())) == "all"]:
        raise ValueError(
            f"{strict[0]} does not say what it makes of images without labels; leave out unlabelled=, or say it in its "
            'class: labels = "none" of one that reads none (docs/own-method.md)'
        )
    if len(reading) == len(terms):
        raise ValueError(
            f"all that this run minimises reads labels ({', '.join(keys)}): leave out unlabelled=, or choose a "
            "method that learns from images without them, like KD, FitNet or letKD-1"
        )
    if reading and num_labelled == 0:
        weights = ", ".join(f"{_weight_option(loss, term, options)}=0" for (_, term), loss in reading.items())
        raise ValueError(
            f"unlabelled_share={options.data.unlabelled_share:g} leaves no labelled image in a batch, and "
            f"{', '.join(keys)} reads labels; choose a smaller share, or leave it out of the loss: {weights}"
        )


def learns_without_labels(options: Options) -> bool:
    """Whether anything that a run minimises is made of images without labels."""
    return not all(reads for _, reads in _weighted_terms(options).values())


def labels_read(loss: type[Loss], transforms: Sequence[str]) -> Labels:
    """What a loss reads of labels with transforms, by name, in front of it."""
    return loss.labels_behind(map(find_transform, transforms)) if transforms else loss.labels


def _weighted_terms(options: Options) -> dict[tuple[str, str], tuple[type[Loss], bool]]:
    """What a run minimises, by loss and term: the loss, and whether the term reads labels."""
    weights, transforms = weights_of(options), transforms_of(options.experiment.method)
    losses = [find_loss(key) for key in losses_of(options)]
    return {
        (loss.key, term): (loss, _reads_labels(loss, term, transforms.get(loss.key, ())))
        for loss in losses
        for term in loss.terms
        if weights[loss.term_name(term)]
    }


def _weight_option(loss: type[Loss], term: str, options: Options) -> str:
    """The option that is a term's weight, by the name that it has in the experiment."""
    name = loss.weight_option(term)
    return PUBLISHED_NAMES.get(name, name) if options.words else name


def _reads_labels(loss: type[Loss], term: str, transforms: Sequence[str]) -> bool:
    """Whether a term, or what stands in front of its loss, does."""
    return labels_read(loss, transforms) != "none" and (loss.label_terms is None or term in loss.label_terms)
