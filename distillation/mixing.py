"""What losses do with mixed images, of mixup and CutMix, and which cannot have any."""

from config.options import Options
from dataloaders.mixing import mixes, named
from distillation.expressions import losses_of, transforms_of
from distillation.labels import labels_read
from distillation.losses import Loss, find_loss, weighs_mixed

REFUSED = "refused: it needs one class an image"
BOTH_LABELS = "weighs both labels by their shares"
NO_LABELS = "reads no labels: compares what both networks make of the mixture"


def does_with_mixed(loss: type[Loss]) -> str:
    """What a loss does with mixed images, in a few words."""
    if not weighs_mixed(loss):
        return REFUSED
    return NO_LABELS if loss.labels == "none" else BOTH_LABELS


def check_losses(options: Options) -> None:
    """Refuse to mix images for losses that need one class an image.

    Raises:
        ValueError: names the method, these losses, and what mixes.
    """
    if not mixes(options.protocol):
        return
    transforms = transforms_of(options.experiment.method)
    losses = {key: find_loss(key) for key in losses_of(options)}
    if refused := [
        key
        for key, loss in losses.items()
        if not weighs_mixed(loss) or labels_read(loss, transforms.get(key, ())) == "all"
    ]:
        raise ValueError(
            f"{options.experiment.method} cannot learn from mixed images: {', '.join(refused)} needs one class an "
            f"image; leave out {named(options.protocol)}, or choose another method"
        )
