"""Pictures without classes of a training: checked at the door, opened, and what they make of an epoch."""

from config.options import OPTIONS, Options
from dataloaders import Dataset, check_train_batch
from dataloaders.mixing import mixes, named
from dataloaders.unlabelled import (
    Unlabelled,
    check_parts,
    find_pictures,
    numbers_of,
    open_pictures,
    refuse_evaluation,
    usable_pictures,
)
from distillation.labels import check_labels
from engine.progress import tracked


def check_unlabelled(options: Options) -> None:
    """Refuse pictures that are not there, that evaluate, or that the losses cannot use; and a share of none.

    Raises:
        ValueError: says which, and what to do.
    """
    data, protocol = options.data, options.protocol
    if data.unlabelled is None:
        _refuse_share_of_none(options)
        return
    if mixes(protocol):
        raise ValueError(f"{named(protocol)} mixes labels too, and unlabelled= brings images without; leave out one")
    num_labelled, _ = numbers_of(protocol.batch_size, data.unlabelled_share)
    parts = f"accumulate={protocol.accumulate} parts"
    check_parts(protocol.batch_size, data.unlabelled_share, protocol.accumulate, parts)
    check_labels(options, num_labelled)
    refuse_evaluation(data.unlabelled, options.run.data_dir, val_split=data.val_split)
    find_pictures(data.unlabelled)


def check_pictures_of_words(options: Options) -> None:
    """As `check_unlabelled`, for words, which are of labelled images unless all of a batch are pictures.

    Raises:
        ValueError: says which, and what to do.
    """
    data = options.data
    if data.unlabelled is None:
        _refuse_share_of_none(options)
        return
    if not data.is_label_free:
        raise ValueError(
            f"words are of labelled images unless unlabelled_share=1; leave out unlabelled={data.unlabelled}, or say "
            "unlabelled_share=1"
        )
    refuse_evaluation(data.unlabelled, options.run.data_dir, val_split=data.val_split)
    find_pictures(data.unlabelled)


def _refuse_share_of_none(options: Options) -> None:
    share = options.data.unlabelled_share
    if share != OPTIONS["unlabelled_share"].default:
        raise ValueError(f"unlabelled_share={share:g} is of pictures: unlabelled= their folder")


def open_unlabelled(options: Options, dataset: Dataset) -> Unlabelled | None:
    """The pictures of a run; None where it has none.

    Raises:
        ValueError: as `open_pictures`.
    """
    data, run = options.data, options.run
    if data.unlabelled is None:
        return None
    pictures = open_pictures(data.unlabelled, dataset, num_workers=run.num_workers, progress=tracked)
    return Unlabelled(pictures, data.unlabelled_share)


def steps_of_epoch(options: Options, dataset: Dataset) -> int:
    """Of a training; no picture is decoded for it.

    Raises:
        ValueError: a training step cannot have so many or such images; or as `usable_pictures`.
    """
    data, batch_size = options.data, options.protocol.batch_size
    if data.unlabelled is None:
        check_train_batch(dataset, batch_size, data.padding_mode, options.augmentation)
        return len(dataset.split("train")) // batch_size
    check_train_batch(dataset, 1, data.padding_mode, options.augmentation)
    beside = Unlabelled(usable_pictures(data.unlabelled, dataset)[0], data.unlabelled_share)
    beside.check(dataset, batch_size)
    return beside.steps(dataset, batch_size)
