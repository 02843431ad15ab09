"""Options of a training that nothing of it reads, because another one is not there."""

from collections.abc import Iterator

from config.options import EMA, Options, Protocol
from dataloaders.mixing import mixes
from engine.schedule import TO_FINAL_RATE


def unread_options(options: Options) -> Iterator[str]:
    """What is given and changes nothing, and what would read it; a line each."""
    protocol, default = options.protocol, Protocol()
    is_averaged = options.job.average or (options.pair is not None and options.pair.teacher == EMA)
    readers = {
        "mix_switch": (protocol.mixup and protocol.cutmix, "mixup= and cutmix= together"),
        "mix_probability": (mixes(protocol), "mixup= or cutmix="),
        "mix_off_epoch": (mixes(protocol), "mixup= or cutmix="),
        "ema_decay": (is_averaged, "average=True or teacher=ema"),
        "final_learning_rate": (protocol.schedule in TO_FINAL_RATE, "schedule=cosine or schedule=linear"),
    }
    for key, (is_read, reader) in readers.items():
        if not is_read and (value := getattr(protocol, key)) != getattr(default, key):
            yield f"{key}={value:g} changes nothing without {reader}"
