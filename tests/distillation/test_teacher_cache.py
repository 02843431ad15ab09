"""What a cache of a teacher keeps, by what it is told from others, and which losses can read it."""

import copy
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from device_tools import Replaying, never_waiting
from objective_tools import batch_of, objective_of_method, small_digits

from architectures import Input, Place, create_model
from config.experiments import default_config
from config.options import GROUPS, OPTIONS, Options, Protocol
from config.schema import options_of
from dataloaders import make_train_loader
from distillation import teacher_cache
from distillation.build import check_networks
from distillation.cache_options import (
    BEARING,
    LOGITS,
    NOT_OF_VIEWS,
    OF_NO_VIEWS,
    can_read_cache,
    check_cache,
    identity_of,
    view_options,
)
from distillation.cached_signals import Form, Shortened, Whole, fingerprint_of
from distillation.losses import find_loss, list_losses
from distillation.losses.logits import LogitLoss
from distillation.signals import Wanted, measured
from distillation.teacher_cache import TeacherCache, check_size, forms_of, in_bytes, whole_forms
from engine.optimization import make_optimizer
from engine.step import WARM_UP_STEPS, TrainStep

PROTOCOL = Protocol()
UNTRAINED = SimpleNamespace(network=SimpleNamespace())  # of its logits nothing is asked
CACHED = {"teacher": "resnet8", "teacher_cache": "logits", "image_size": 8}


def options_for(method: str, **updates: object) -> Options:
    config = default_config(f"digits.RN14_RN8.{method}")
    assert set(updates) <= set(config)
    return Options.of(config | CACHED | updates)


def logits(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (5 * torch.randn(7, 10, generator=torch.Generator().manual_seed(0))).to(dtype)


def restored(form: Form, signal: torch.Tensor) -> torch.Tensor:
    return form.restore(form.shorten(signal))


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits_are_kept_as_they_are(dtype):
    assert torch.equal(restored(Shortened(10), logits(dtype)), logits(dtype))


def test_logits_of_32_bits_are_rounded_and_never_become_infinite():
    values = torch.cat([logits(), torch.tensor([[1e6, -1e6] + [0.0] * 8])])
    found = restored(Shortened(10), values)
    assert found.dtype == torch.float16 and found.isfinite().all() and found[-1, :2].tolist() == [65504, -65504]
    torch.testing.assert_close(found[:-1].float(), values[:-1], rtol=2**-11, atol=0)


@pytest.mark.parametrize("top", [1, 3, 9])
def test_the_largest_logits_stay_and_the_others_share_what_is_left_of_the_probability(top):
    values = logits()
    form = Shortened(10, top)
    kept = form.shorten(values)
    found = form.restore(kept)
    assert kept["classes"].dtype == torch.int16 and found.dtype == torch.float32
    largest = values.topk(top, dim=1).indices
    torch.testing.assert_close(found.gather(1, largest), values.gather(1, largest), rtol=2**-11, atol=0)
    probabilities, before = found.softmax(dim=1), values.softmax(dim=1)
    torch.testing.assert_close(probabilities.gather(1, largest), before.gather(1, largest), rtol=0.02, atol=1e-3)
    for row, chosen in zip(found, largest, strict=True):
        others = [row[number].item() for number in range(10) if number not in chosen.tolist()]
        assert len(set(others)) == 1
    if top == 9:
        torch.testing.assert_close(found, values, rtol=2**-10, atol=1e-4)


@pytest.mark.parametrize(("num_classes", "top"), [(10, None), (10, 3), (40_000, 3)])
def test_a_row_is_as_large_as_is_said(num_classes, top):
    form = Shortened(num_classes, top)
    kept = form.shorten(torch.randn(2, num_classes))
    assert sum(values.nbytes for values in kept.values()) == 2 * form.bytes_of_row
    found = form.restore(kept)
    assert found.shape == form.blank(2).shape == (2, num_classes)
    assert top is None or found.argmax(1).tolist() == kept["classes"][:, 0].tolist()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_map_is_kept_as_it_is_with_its_channels_last(layout):
    values = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
    form = Whole((3, 4, 5), 4)
    kept, found = form.shorten(values), restored(form, values)
    assert kept["values"].shape == (2, 4, 5, 3) and kept["values"].is_contiguous()
    assert torch.equal(found, values) and found.is_contiguous(memory_format=torch.channels_last)
    assert kept["values"].nbytes == 2 * form.bytes_of_row and form.blank(2).stride() == found.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_vectors_are_kept_as_they_are(dtype):
    values = torch.randn(2, 7).to(dtype)
    assert torch.equal(restored(Whole((7,), 4), values), values)


@pytest.mark.parametrize(("number", "said"), [(2_400_000_000, "2.4 GB"), (10_000_000, "10.0 MB"), (5_000, "5 kB")])
def test_sizes_are_said_in_the_units_of_disks(number, said):
    assert in_bytes(number) == said


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_convnext", "test_any_pair:swin"])
def test_what_networks_of_tokens_and_of_maps_with_channels_last_say_comes_back(name):
    network = measured(create_model(name, num_classes=10, image_size=32), 32, name)
    wanted = Wanted(logits=True, pooled=True, maps=("penultimate", "stage2"))
    network.module.eval()
    with torch.no_grad():
        said = network.reading(wanted)(torch.randn(2, 3, 32, 32)).tensors()
    forms = whole_forms(network.reading(wanted), 10, 4)
    assert forms.keys() == said.keys() == {"logits", "pooled", "maps/penultimate", "maps/stage2"}
    for key, form in forms.items():
        assert torch.equal(restored(form, said[key]), said[key]) and said[key].shape[1:] == form.blank(2).shape[1:]
        assert sum(values.nbytes for values in form.shorten(said[key]).values()) == 2 * form.bytes_of_row


# --- a step ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["KD", "ctkd:lskd:DKD", "FitNet", "OFD", "SRRL", "CAT-KD", "sdd:KD", "ReviewKD", "KD+RKD+AT"]
)
def test_a_batch_that_brings_what_is_read_needs_no_teacher(method):
    torch.manual_seed(0)
    objective = objective_of_method(method).eval()
    pixels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    batch = batch_of(pixels, torch.arange(4))
    own = objective(batch)
    taught = objective.teacher(objective.input(pixels)).tensors()
    places = objective.describe()["places"]
    teacher = objective.without_teacher()
    assert objective.teacher is None and taught.keys() == whole_forms(teacher.network, 10, 4).keys()
    told = objective(batch._replace(taught=taught))
    assert torch.equal(told.loss, own.loss) and all(
        torch.equal(told.terms[name], own.terms[name]) for name in own.terms
    )
    assert objective.describe()["places"] == places
    copied = copy.deepcopy(objective)
    assert torch.equal(copied(batch._replace(taught=taught)).loss, own.loss)
    head = copied.to(torch.float64).taught_head
    assert (head is None) is not teacher.network.wanted.head and (head is None or head.weight.dtype == torch.float64)


@pytest.mark.parametrize(
    ("kind", "method"), [(TrainStep, "KD"), (Replaying, "KD"), (TrainStep, "KD+OFD"), (Replaying, "KD+OFD")]
)
def test_a_step_that_reads_waits_for_nothing(kind, method, tmp_path):
    """Nor does one that writes, but for the last of a file; a recorded step has the logits of its own batch."""
    dataset, device = small_digits(), torch.device("cpu")
    objective = objective_of_method(method).train()
    loader = make_train_loader(dataset, batch_size=128, device=device, seed=0)
    arguments = {"folder": tmp_path, "batch_size": 128, "parts": 1, "device": device, "autocast": nullcontext}
    teacher = objective.without_teacher()
    trained = []
    for _ in ("writes", "reads"):
        own = copy.deepcopy(objective)
        step = kind(own, make_optimizer(own, PROTOCOL), lambda: torch.autocast("cpu", enabled=False))
        forms = {LOGITS: Shortened(10, 3)} if method == "KD" else whole_forms(teacher.network, 10, 4)
        cache = TeacherCache(teacher, dataset, forms, {name: {"format": name} for name in forms}, **arguments)
        batches = cache.over(loader, 1, skip=0)
        for _ in range(WARM_UP_STEPS + 1):
            step(next(batches))
        with never_waiting("cpu"):
            for _ in range(len(loader) - WARM_UP_STEPS - 2):
                step(next(batches))
        step(next(batches))
        assert next(batches, None) is None
        trained.append(own.student.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


# --- what may be cached ----------------------------------------------------------------------------------------------

ON_LOGITS = [loss.method for key in list_losses() if issubclass(loss := find_loss(key), LogitLoss) and loss.method]


@pytest.mark.parametrize("method", [*ON_LOGITS, "lskd:DKD", "ctkd:KD", "KD+DIST", "KD+LS"])
def test_losses_on_logits_can_read_a_cache(method):
    options = options_for(method)
    check_cache(options)
    check_networks(options, small_digits())


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("FitNet", "FitNet reads maps"),
        ("KD+SRRL", "SRRL reads the pooled vector and the classifier"),
        ("sdd:KD", "sdd:KD reads the classifier and maps"),
        ("letKD-2+KD", "alone, and letKD-2 reads more of it; leave it out, or teacher_cache=all"),
        ("KDPP", "KDPP reads more"),
    ],
)
def test_a_loss_that_reads_more_is_refused_by_name(method, said):
    options = options_for(method)
    with pytest.raises(ValueError, match=r"^teacher_cache=logits keeps the logits .* or teacher_cache=all$") as caught:
        check_cache(options)
        check_networks(options, small_digits())
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not can_read_cache(options)


@pytest.mark.parametrize("method", ["KD", "FitNet", "KD+SRRL", "sdd:KD", "KD+RKD"])
def test_any_loss_can_read_a_cache_of_all(method):
    options = options_for(method, teacher_cache="all")
    check_cache(options)
    check_networks(options, small_digits())
    assert can_read_cache(options)


@pytest.mark.parametrize(
    ("method", "updates", "said"),
    [
        ("KD", {"teacher": "ema"}, "teacher=ema changes in every step"),
        ("KD", {"unlabelled": "a"}, "keeps what is said of labelled images alone; leave it out, or unlabelled="),
        ("LS", {}, "LS reads no teacher: leave out teacher_cache=logits"),
        ("LS", {"teacher_cache": "all"}, "LS reads no teacher: leave out teacher_cache=all"),
        ("KD", {"teacher_cache": "all", "teacher_cache_top": 3}, "teacher_cache_top=3 is of a cache of logits alone"),
        ("KD", {"teacher_cache": None, "teacher_cache_top": 3}, "teacher_cache_top=3 is of a cache, and there is none"),
        ("KD", {"teacher_cache": None, "teacher_cache_dir": "a"}, "teacher_cache_dir=a is of a cache"),
    ],
)
def test_a_cache_of_nothing_is_refused(method, updates, said):
    with pytest.raises(ValueError, match=said):
        check_cache(options_for(method, **updates))


def test_as_many_logits_as_classes_are_refused():
    with pytest.raises(ValueError, match=r"teacher_cache_top=10 must be below the 10 classes"):
        check_size(options_for("KD", teacher_cache_top=10), small_digits(), untrained=None)


def test_what_does_not_fit_on_the_disk_is_refused_before_a_teacher_is_trained(monkeypatch):
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda place: SimpleNamespace(free=2_000_000))
    options = options_for("KD", epochs=100)
    check_size(options, small_digits(), untrained=None)
    with pytest.raises(
        ValueError, match=r"needs [\d.]+ MB in experiments/teacher_cache, and its disk has 2\.0 MB left"
    ):
        check_size(options, small_digits(), untrained=UNTRAINED)
    check_size(options_for("KD", epochs=1), small_digits(), untrained=UNTRAINED)
    monkeypatch.setattr(teacher_cache.os, "access", lambda place, mode: False)
    with pytest.raises(ValueError, match=r"cannot be written, and teacher_cache= writes there"):
        check_size(options_for("KD", epochs=1), small_digits(), untrained=UNTRAINED)


def test_room_for_maps_is_asked_for_before_a_teacher_is_trained(monkeypatch):
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda place: SimpleNamespace(free=2_000_000))
    network = objective_of_method("OFD").teacher.network
    row = sum(form.bytes_of_row for form in whole_forms(network, 10, 4).values())
    options = options_for("OFD", teacher_cache="all", epochs=100)
    with pytest.raises(ValueError, match=r"needs [\d.]+ MB in .*; choose fewer epochs, another disk, .*_dir=$"):
        check_size(options, small_digits(), untrained=SimpleNamespace(network=network))
    assert 100 * 64 * row > 2_000_000


def test_a_loss_that_asks_nothing_of_an_image_has_nothing_to_be_kept():
    network = objective_of_method("SRRL").teacher.network.reading(Wanted(head=True))
    with pytest.raises(ValueError, match=r"KD reads nothing that the teacher says of an image: leave out .*=all"):
        forms_of(options_for("KD", teacher_cache="all"), network, 10)


# --- what tells a cache from others ----------------------------------------------------------------------------------


def identity(
    input_: Input | None = None,
    fingerprint: str = "weights",
    number: int = 7,
    signal: str = LOGITS,
    places: Mapping[str, Place] = MappingProxyType({}),
    **updates: object,
) -> str:
    network = SimpleNamespace(places_read=lambda: places)
    teacher = SimpleNamespace(identity=fingerprint, input=input_ or Input((0.5,) * 3, (0.5,) * 3), network=network)
    options = options_for("KD", **updates)
    return fingerprint_of(identity_of(options, teacher, small_digits(), {"number": number}, signal=signal))


def test_another_teacher_or_other_images_are_another_cache():
    same = identity()
    others = [
        identity(fingerprint="others"),
        identity(Input((0.5,) * 3, (0.25,) * 3)),
        identity(Input((0.5,) * 3, (0.5,) * 3, image_size=16)),
        identity(number=8),
        identity(teacher="resnet14"),
    ]
    assert len({same, *others}) == len(others) + 1


def test_a_signal_is_another_cache_unless_it_is_of_the_same_place():
    place = Place("layer3", 64, (4, 4))
    places = {
        "maps/penultimate": place,
        "maps/stage3": replace(place, norm="bn"),
        "preact/stage3": replace(place, is_input=True),
    }
    places |= {"maps/stage2": replace(place, path="layer2"), "maps/wide": replace(place, channels=128)}
    whole = {"places": places, "teacher_cache": "all"}
    found = {name: identity(signal=name, **whole) for name in (*places, LOGITS, "pooled")}
    assert found["maps/penultimate"] == found["maps/stage3"]
    assert len({*found.values(), identity()}) == len(found)  # logits alone are in 16 bits
    others = identity(signal="maps/stage2", **whole, view_seed=1), identity(signal="maps/stage2", **whole, number=8)
    assert len({found["maps/stage2"], *others}) == 3


OF_VIEWS = {
    "view_seed": 1, "seed": 1, "padding_mode": "zeros", "batch_size": 32, "val_split": 100, "precision": "bf16",
    "teacher_cache_top": 3,
}  # fmt: skip


@pytest.mark.parametrize("option", OF_VIEWS)
def test_other_views_are_another_cache(option):
    assert identity(**{option: OF_VIEWS[option]}) != identity()


@pytest.mark.parametrize(
    "updates",
    [
        {"epochs": 3}, {"optimizer": "adamw"}, {"kd.temperature": 2.0}, {"student": "resnet14"}, {"cuda": False},
        {"student_weights": "a.pth"}, {"teacher_cache_dir": "a"}, {"seed": 1, "view_seed": 0}, {"name": "a.b.c"},
    ],
)  # fmt: skip
def test_what_trains_is_not_told_apart(updates):
    assert identity(**updates) == identity()


def test_numbers_that_are_equal_make_one_cache():
    whole, broken = ({"mixup": 1, "crop_scale": [0.5, 1]}, {"mixup": 1.0, "crop_scale": [0.5, 1.0]})
    found = [json.dumps(view_options(options_for("KD", **each))) for each in (whole, broken)]
    assert found[0] == found[1] and found[0] != json.dumps(view_options(options_for("KD", mixup=2)))


def test_every_option_that_bears_on_views_is_looked_at():
    """A new option makes another cache, unless it is excused; those that are excused are options."""
    assert set(GROUPS) >= OF_NO_VIEWS and set(OPTIONS) >= NOT_OF_VIEWS
    looked_at = {
        name
        for key, group in GROUPS.items()
        if key not in OF_NO_VIEWS
        for name, said in options_of(group).items()
        if said.bears in BEARING
    }
    assert looked_at >= NOT_OF_VIEWS
    assert looked_at - NOT_OF_VIEWS >= {*OF_VIEWS, "dataset"} - {"view_seed", "seed", "teacher_cache_top"}
