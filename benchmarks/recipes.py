"""What the options of optimisation cost: a step of letKD-2 with each of them, and with all, against a plain one.

    python -m benchmarks.recipes
    python -m benchmarks.recipes --alternations 41

ResNet-56 to ResNet-20 as in `benchmarks.methods`, one objective in one process: in an alternation each optimizer takes
a step, and which begins changes. Ratios are medians over the alternations, with intervals of order statistics. What is
done to images is done to those of one batch, as to those of each batch of an epoch; the draws are made before.
"""

import copy
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measuring import (
    how_much,
    median,
    parser_of,
    ratio,
    said,
    say_head,
    say_row,
    seconds_of,
    take_turns,
    where,
)
from benchmarks.methods import QUICK, Size, objective_of, random_batch, random_dataset
from config.options import Augmentation, Protocol
from config.schema import options_of
from dataloaders.mixing import draw_mixes, mixed, mixes
from dataloaders.policies import Transforms
from engine.average import Average
from engine.host_memory import keep_freed_memory
from engine.meter import Meter
from engine.optimization import make_optimizer
from engine.schedule import learning_rate, set_learning_rate
from engine.step import TrainStep

METHOD = "letKD-2"
LIMIT = 1.03  # of a plain step, all together
TOGETHER = "together"
STEPS = 781  # of an epoch of CIFAR-100
BATCHES = 200  # whose images are changed apart from a step
EPOCH = 6  # the first behind the warm-up of five: the rate is that of a cosine
RECIPES = {
    "a cosine": {"schedule": "cosine", "warmup": 5.0},
    "clipping": {"clip_gradients": 1.0},
    "no decay of norms and biases": {"decay_norms_and_biases": False},
    "mixup and CutMix": {"mixup": 0.2, "cutmix": 1.0},
    "the average": {"average": True},
    "colour jitter": {"color_jitter": [0.4, 0.4, 0.4, 0.1]},
    "RandAugment": {"auto_augment": "randaugment"},
    "erasing": {"random_erasing": 0.25},
}
RECIPES[TOGETHER] = {key: value for options in RECIPES.values() for key, value in options.items()}


def step_functions(size: Size, device: torch.device) -> dict[str, Callable[[], None]]:
    """A training step with the options of each recipe, by its name."""
    objective, batch = objective_of(METHOD, size, device), random_batch(size, device)

    def function(average: bool = False, **options: Any) -> Callable[[], None]:
        of_images = {key: options.pop(key) for key in options_of(Augmentation) if key in options}
        protocol = Protocol(learning_rate=1e-6, **options)  # nothing that is trained on noise runs away
        optimizer = make_optimizer(objective, protocol)
        train = TrainStep(objective, optimizer, lambda: torch.autocast(device.type, enabled=False))
        mixing = draw_mixes(protocol, STEPS, seed=0, epoch=EPOCH) if mixes(protocol) else None
        averaged = average and Average(copy.deepcopy(objective.student), objective.student, protocol.ema_decay)
        num_batches = size.images // size.batch
        transform = transforms_of(of_images, size, device).of_epoch(0, EPOCH)
        number = 0

        def step() -> None:
            nonlocal number
            number = number % STEPS + 1
            set_learning_rate(optimizer, learning_rate(protocol, EPOCH, number, STEPS))
            given = batch._replace(images=transform(batch.images, number % num_batches))
            if mixing:  # the images: letKD-2 refuses the labels
                images = mixed(given, mixing[number - 1], blends=protocol.mixup > 0).images
                given = batch._replace(images=images)
            Meter(device).add(train(given), batch.labels)
            if averaged:
                averaged.update(number)

        return step

    return {"plain": function(), **{name: function(**options) for name, options in RECIPES.items()}}


def transforms_of(options: dict[str, Any], size: Size, device: torch.device) -> Transforms:
    """What a training loader with these options does to images beyond crop and flip."""
    every = range(size.batch)
    return Transforms(Augmentation(**options), random_dataset(size), size.images, size.batch, every, device)


def image_seconds(size: Size, device: torch.device) -> tuple[float, float]:
    """What all of it takes for a batch, the median over some, and the draws of an epoch."""
    options = {key: value for key, value in RECIPES[TOGETHER].items() if key in options_of(Augmentation)}
    transforms, images = transforms_of(options, size, device), random_batch(size, device).images
    drawing = seconds_of(lambda: transforms.of_epoch(0, EPOCH), 1, device)
    transform = transforms.of_epoch(0, EPOCH)
    numbers = range(min(BATCHES, size.images // size.batch))
    return statistics.median(seconds_of(lambda n=n: transform(images, n), 1, device) for n in numbers), drawing


def main(argv: list[str]) -> int:
    parser = parser_of("recipes", __doc__)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    keep_freed_memory(device)  # as training does
    print(f"{where(args.device)}; {how_much(args)}")
    size = QUICK if args.quick else Size()
    turns = take_turns(step_functions(size, device), args.alternations, device)
    say_head("a step with", "time", "against plain", "95 %")
    say_row("nothing of it", f"{1000 * median(turns, 'plain'):.0f} ms", "", "")
    for name in RECIPES:
        say_row(name, f"{1000 * median(turns, name):.0f} ms", *said(ratio(turns, name, "plain")))
    changing, drawing = image_seconds(size, device)
    print(
        f"\nall that is done to images, alone: {1000 * changing:.1f} ms a batch, "
        f"{100 * changing / median(turns, 'plain'):.1f} % of a plain step; its draws: {1000 * drawing:.0f} ms an epoch"
    )
    is_below = ratio(turns, TOGETHER, "plain")["ratio"] <= LIMIT
    print(f"together they are {'within' if is_below else 'above'} the limit of {LIMIT} of a plain step")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
