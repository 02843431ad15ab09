"""How many of the teacher's decisions change when its network runs in bfloat16.

    python -m benchmarks.precision config=digits.RN14_RN8.letKD-2 num_words=128

The experiment's teacher and supervision must be there. Its network runs over the evaluation images in float32 and under
bfloat16 autocast; what follows (distances, projections, decisions) is float32 in both, as in training. Printed are the
share of patches whose nearest word or sub-class is another one, and the mean total variation between the two target
distributions, half of sum_k |p_k - q_k|: 0 where they agree, 1 where they share nothing.
"""

import datetime
import sys

import torch
from torch import Tensor

from algorithms import check_options
from algorithms.teaching import open_objective
from config.command_lines import read_value
from config.options import Options
from dataloaders import Batch, load_dataset, make_eval_loader
from distillation.losses.decisions import Decisions
from distillation.losses.words import Words
from distillation.objective import Objective
from engine.numerics import choose_device, device_name
from main_classification import check_updates, default_config

Sums = dict[str, float]


@torch.inference_mode()
def compare(objective: Objective, batch: Batch) -> dict[str, Tensor]:
    """For a batch, (P,) each: whether a word or sub-class changed, and the total variation of the targets."""
    images = objective.teacher.input(batch.images)
    exact = objective.teacher(images)
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        rounded = objective.teacher(images)

    def maps(loss: Words | Decisions) -> list[Tensor]:
        return [loss.teacher_map(taught).float() for taught in (exact, rounded)]

    found = {}
    if "words" in objective.losses:
        words = objective.losses["words"]
        found["words changed"] = torch.ne(*map(words.codebook.hard_assignment, maps(words)))
        found["words, total variation"] = _variation(*map(words.codebook.soft_assignment, maps(words)))
    if "decisions" in objective.losses:
        decisions = objective.losses["decisions"]
        rows = [decisions.subclasses.assign(map_BCHW, batch.labels) for map_BCHW in maps(decisions)]
        found["sub-classes changed"] = torch.ne(*rows)
        found["decisions, total variation"] = _variation(*(decisions.subclasses.decisions[index] for index in rows))
    return found


def _variation(p_PK: Tensor, q_PK: Tensor) -> Tensor:
    return (p_PK - q_PK).abs().sum(dim=1) / 2


def measure(options: Options) -> Sums:
    """Means over all patches of the evaluation images."""
    data, num_workers = options.data, options.run.num_workers
    dataset = load_dataset(
        data.dataset,
        splits=("train", "eval"),  # a folder measures its mean and deviation on the former
        data_dir=options.run.data_dir,
        image_size=data.image_size,
        mean=data.mean,
        std=data.std,
        num_workers=num_workers,
    )
    device = choose_device(options.run.cuda)
    objective = open_objective(options, dataset).to(device, memory_format=torch.channels_last).eval()
    sums: Sums = {}
    num_patches = 0
    for batch in make_eval_loader(
        dataset, "eval", batch_size=options.protocol.batch_size, device=device, num_workers=num_workers
    ):
        found = compare(objective, batch)
        for name, values_P in found.items():
            sums[name] = sums.get(name, 0.0) + values_P.double().sum().item()
        num_patches += len(values_P)
    return {name: value / num_patches for name, value in sums.items()}


def read_options(words: list[str]) -> Options:
    """The checked options of an experiment with `key=value`, as the entry reads them."""
    updates = {key: read_value(text) for key, text in (word.split("=", 1) for word in words)}
    config = default_config(updates["config"])
    updates = check_updates(updates, config)
    check_options(config | updates)
    return Options.of(config | updates)


def main(words: list[str]) -> None:
    options = read_options(words or ["config=digits.RN14_RN8.letKD-2"])
    device = device_name(choose_device(options.run.cuda))
    print(f"{options.job.config}; {device}; {datetime.date.today()}, torch {torch.__version__}")
    for name, value in measure(options).items():
        print(f"{name:30} {100 * value:.3f} %")


if __name__ == "__main__":
    main(sys.argv[1:])
