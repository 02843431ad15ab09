"""The offline part on any teacher: made as the parts of the method say, in bounded memory, saved and read back."""

import copy
import errno
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from letkd import (
    LDA,
    KMeans,
    Supervision,
    attach,
    decision_matrix,
    fit_subclasses,
    load_supervision,
    make_supervision,
    to_patches,
)
from letkd.files import fingerprint, pack
from letkd.supervision import earlier_fingerprint

NUM_CLASSES = 3
IMAGES = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % NUM_CLASSES
LOADER = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(OrderedDict(first=block, last=nn.Conv2d(6, 5, 1), pool=nn.AdaptiveAvgPool2d(1)))


@pytest.fixture(scope="module")
def made(teacher) -> Supervision:
    return make_supervision(teacher, LOADER, words={"last": 7}, decisions={"first": 2}, num_classes=NUM_CLASSES)


def patches(teacher: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """All patches (480, C) of "first" and "last"."""
    with torch.no_grad():
        first = copy.deepcopy(teacher).eval().first(IMAGES)
        return to_patches(first), to_patches(teacher.last(first))


# --- what is made ----------------------------------------------------------------------------------------------------


def test_words_are_k_means_over_all_patches(teacher, made):
    torch.testing.assert_close(made["last"].tensors, {"centroids": KMeans(7).fit(patches(teacher)[1]).cluster_centers_})
    assert made["last"].num_templates == made["last"].module().num_words == 7


def test_decisions_are_lda_sub_classes_and_their_matrix(teacher, made):
    patches_PC, labels_P = patches(teacher)[0], LABELS.repeat_interleave(16)
    lda = LDA(n_components=2).fit(patches_PC, labels_P)
    projected_PL = lda.transform(patches_PC)
    centers_ML, members_P = fit_subclasses(projected_PL, labels_P, num_classes=NUM_CLASSES, num_subclasses=2)
    _, decisions_MM = decision_matrix(projected_PL, members_P, num_targets=6)
    found = made["first"].tensors
    signs_L = (found["scalings"] * lda.scalings_).sum(0).sign()
    torch.testing.assert_close(found["scalings"] * signs_L, lda.scalings_)
    torch.testing.assert_close(found["xbar"], lda.xbar_)
    torch.testing.assert_close(found["centers"] * signs_L.float(), centers_ML, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["decisions"], decisions_MM)
    assert made["first"].num_templates == made["first"].module().num_targets == 6


def test_the_grid_pooling_and_size_are_recorded(teacher):
    made = make_supervision(teacher, LOADER, words={"last": 4, "first": 4}, pooling={"last": 2})
    assert {path: (found.pooling, found.grid) for path, found in made.items()} == {
        "last": (2, (2, 2)),
        "first": (1, (4, 4)),
    }
    assert made["last"].image_shape == (1, 8, 8)
    with torch.no_grad():
        pooled_PC = to_patches(nn.functional.avg_pool2d(copy.deepcopy(teacher).eval()[:2](IMAGES), 2))
    torch.testing.assert_close(made["last"].tensors["centroids"], KMeans(4).fit(pooled_PC).cluster_centers_)


def test_the_teacher_is_left_as_it_was(teacher):
    teacher = copy.deepcopy(teacher).train()
    teacher.first.eval()
    before = copy.deepcopy(teacher.state_dict())
    make_supervision(teacher, LOADER, words={"last": 3})
    assert [module.training for module in teacher.children()] == [False, True, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module._forward_hooks for module in teacher.modules())


def test_the_teacher_is_known_by_its_state_dict_however_it_is_wrapped(teacher, made):
    assert made["last"].teacher == fingerprint(teacher.state_dict())
    assert made["last"].is_of(teacher) and made["last"].is_of(nn.DataParallel(teacher))
    assert not made["last"].is_of(nn.Sequential(teacher))


def test_no_more_patches_are_held_than_allowed(teacher):
    """As many words as held patches: k-means gives them back, different patches of many images."""
    lines = []
    made = make_supervision(teacher, LOADER, words={"last": 100}, max_patches=100, progress=lines.append)
    assert "last: 100 patches of 30 images" in lines
    distances = torch.cdist(made["last"].tensors["centroids"], patches(teacher)[1])
    nearest, index = distances.min(dim=1)
    assert nearest.max() < 1e-3 and len(index.unique()) > 90
    assert len((index // 16).unique()) > 20


@pytest.mark.parametrize("decisions", [{}, {"first": 2}])
def test_lines_of_progress_are_given_where_they_are_asked_for_and_cost_no_run(decisions, teacher, capsys):
    class Counted(DataLoader):
        runs = 0

        def __iter__(self):
            Counted.runs += 1
            return super().__iter__()

    loader = Counted(TensorDataset(IMAGES, LABELS), batch_size=8)
    lines, runs = [], []
    for progress in (None, lines.append):
        Counted.runs = 0
        options = {"words": {"last": 7}, "decisions": decisions, "num_classes": NUM_CLASSES}
        make_supervision(teacher, loader, **options, progress=progress)
        runs.append(Counted.runs)
    assert capsys.readouterr() == ("", "")
    assert runs == [3, 3], "two, and a first batch to see what it gives"
    phases = [line for line in lines if " of " in line and line[0].isdigit()]
    assert phases == (
        [
            "1 of 5: LDA of first",
            "2 of 5: reading patches of last, first",
            "3 of 5: k-means of 7 words of last",
            "4 of 5: sub-classes of first",
            "5 of 5: decisions of first",
        ]
        if decisions
        else ["1 of 2: reading patches of last", "2 of 2: k-means of 7 words of last"]
    )
    assert sum("last: k-means iteration " in line for line in lines) == 20


def test_a_sample_keeps_labels_with_their_patches(teacher):
    """Two images that lie apart: with any sample their sub-classes decide for their own class alone."""
    images = torch.cat((torch.zeros(20, 1, 8, 8), torch.ones(20, 1, 8, 8))) + 0.01 * torch.randn(40, 1, 8, 8)
    labels = (torch.arange(40) >= 20).long()
    order = torch.randperm(40)
    loader = DataLoader(TensorDataset(images[order], labels[order]), batch_size=7)
    point = nn.Sequential(nn.Conv2d(1, 4, 1))
    made = make_supervision(point, loader, decisions={"0": 2}, num_classes=2, max_patches=200)
    assert torch.equal(made["0"].tensors["decisions"][:2, 2:], torch.zeros(2, 2))
    assert torch.equal(made["0"].tensors["decisions"][2:, :2], torch.zeros(2, 2))


# --- files -----------------------------------------------------------------------------------------------------------


def same(one: Supervision, other: Supervision) -> bool:
    def facts(found):
        return {key: value for key, value in vars(found).items() if key != "tensors"}

    return list(one) == list(other) and all(
        facts(one[path]) == facts(other[path])
        and one[path].tensors.keys() == other[path].tensors.keys()
        and all(torch.equal(tensor, other[path].tensors[name]) for name, tensor in one[path].tensors.items())
        for path in one
    )


def test_a_file_is_read_back_and_by_torch_alone(made, tmp_path):
    made.save(tmp_path / "teacher.supervision")
    assert same(load_supervision(tmp_path / "teacher.supervision"), made)
    content = torch.load(tmp_path / "teacher.supervision", weights_only=True)
    assert content["format"] == "letkd-supervision-2"
    record = content["maps"]["first"]["record"]
    assert record["versions"]["torch"] == torch.__version__ and record["seed"] == 0
    assert (record["patches"], record["num_images"], record["components"]) == (480, 30, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.supervision"]


def write_earlier(made: Supervision, teacher: nn.Module, path: Path) -> None:
    """As the version before wrote it: without a checksum of its own, and with another fingerprint."""
    facts = {at: vars(found) | {"teacher": earlier_fingerprint(teacher)} for at, found in made.items()}
    for found in facts.values():
        del found["record"]
    torch.save({"format": "letkd-supervision-1", "maps": facts}, path)


def test_a_file_of_the_version_before_is_read_and_its_teacher_known(teacher, made, tmp_path):
    path = tmp_path / "earlier"
    write_earlier(made, teacher, path)
    earlier = load_supervision(path)
    assert all(torch.equal(earlier[at].tensors[name], found) for at in made for name, found in made[at].tensors.items())
    attach(copy.deepcopy(teacher), earlier, teacher=teacher)
    other = copy.deepcopy(teacher)
    other.last.bias.data += 1
    with pytest.raises(ValueError, match="was made from another teacher"):
        attach(copy.deepcopy(teacher), earlier, teacher=other)


def test_a_failed_write_keeps_the_earlier_file(made, tmp_path, monkeypatch):
    path = tmp_path / "teacher.supervision"
    made.save(path)

    def no_space(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        Supervision({"last": made["last"]}).save(path)
    assert same(load_supervision(path), made)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("version", ["now", "before"])
def test_damage_is_an_error_and_never_another_supervision(version, teacher, made, tmp_path):
    path, chance = tmp_path / "teacher.supervision", random.Random(0)
    if version == "now":
        made.save(path)
    else:
        write_earlier(made, teacher, path)
        made = load_supervision(path)
    whole, noticed = path.read_bytes(), 0
    for trial in range(200):
        damaged = bytearray(whole)
        if trial % 2:
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        else:
            del damaged[chance.randrange(len(whole)) :]
        path.write_bytes(damaged)
        try:
            assert same(load_supervision(path), made)
        except ValueError as error:
            assert str(path) in str(error)
            noticed += 1
    assert noticed > 120


def lacking(made: Supervision, **changes: Any) -> bytes:
    content = made.content()
    return pack(content | {"maps": {"last": {**content["maps"]["last"], **changes}}})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"record": None}, "no record of what made it"),
        ({"tensors": {}}, "no tensor 'centroids'"),
        ({"tensors": {"centroids": torch.ones(7, 5).int()}}, "'centroids' holds torch.int32"),
        ({"tensors": {"centroids": torch.ones(7, 5).to_sparse()}}, "'centroids' is sparse_coo, not dense"),
        ({"tensors": {"centroids": torch.ones(7)}}, r"words of shape \(7,\), not"),
        ({"tensors": {"centroids": torch.full((7, 5), torch.nan)}}, "not finite"),
        ({"tensors": {"centroids": torch.ones(1).expand(2**32, 5)}}, "has fewer numbers"),
        ({"num_subclasses": 2}, "no tensor 'scalings'"),
        ({"colour": "red"}, "no complete supervision"),
        ({"grid": None}, "no complete supervision"),
        ({"image_shape": (1, 8)}, "no complete supervision"),
    ],
)
def test_what_a_file_lacks_is_said(changes, complaint, made, tmp_path):
    """Not damage but another program's work: the checksum fits."""
    path = tmp_path / "teacher.supervision"
    path.write_bytes(lacking(made, **changes))
    with pytest.raises(ValueError, match=rf"teacher.supervision .*{complaint}"):
        load_supervision(path)


@pytest.mark.parametrize(
    ("number", "complaint"),
    [(0, "the number of sub-classes is 0"), (4, "6 sub-classes, not 4 of each class")],
)
def test_numbers_of_sub_classes_fit_the_tensors(number, complaint, made, tmp_path):
    path = tmp_path / "teacher.supervision"
    content = made.content()
    path.write_bytes(pack(content | {"maps": {"first": {**content["maps"]["first"], "num_subclasses": number}}}))
    with pytest.raises(ValueError, match=rf"teacher.supervision .*{complaint}"):
        load_supervision(path)


def test_what_is_no_supervision_is_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "network.pth")
    with pytest.raises(ValueError, match=r"network.pth holds no supervision"):
        load_supervision(tmp_path / "network.pth")
    with pytest.raises(FileNotFoundError, match=r"no file .*missing"):
        load_supervision(tmp_path / "missing")


def test_an_unknown_map_is_named_with_the_nearest(made):
    with pytest.raises(KeyError, match="no supervision of 'lst'; there is last, first"):
        made["lst"]


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no map to make supervision of"),
        ({"words": {"last": 4}, "decisions": {"last": 2}, "num_classes": 3}, "'last' stands in `words` and in"),
        ({"words": {"last": 0}}, "'last' is 0; at least 2 is needed"),
        ({"words": {"last": 4}, "max_patches": 0}, "'max_patches' is 0"),
        ({"decisions": {"first": 2}}, "`decisions` need `num_classes`"),
        ({"decisions": {"first": 2}, "num_classes": 2}, "labels 0 to 2; num_classes=2 allows 0 to 1"),
        ({"decisions": {"first": 200}, "num_classes": 3}, "class 0 has 160 patches, too few for 200 sub-classes"),
        ({"words": {"last": 481}}, "480 patches cannot have 481 clusters"),
        ({"words": {"last": 4, "lst": 4}}, "has no module 'lst'"),
        ({"words": {"last": 4}, "pooling": 3}, "the 4 x 4 grid of 'last' cannot be pooled 3 x 3"),
        ({"words": {"last": 4}, "pooling": {"lst": 2}}, "pooling names 'lst', which is no map here; there is last"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(teacher, options, message):
    with pytest.raises(ValueError, match=message):
        make_supervision(teacher, LOADER, **options)
    assert not any(module._forward_hooks for module in teacher.modules())


def test_a_loader_must_run_twice_and_give_the_same(teacher):
    with pytest.raises(ValueError, match="the loader is a list_iterator, which ends after one run"):
        make_supervision(teacher, iter([(IMAGES, LABELS)]), words={"last": 4})
    with pytest.raises(ValueError, match="the loader gives no images"):
        make_supervision(teacher, [], words={"last": 4})

    class Shrinking(list):
        """One image fewer in every run."""

        def __iter__(self):
            self.pop()
            return super().__iter__()

    with pytest.raises(ValueError, match="the loader gave other images in its second run"):
        make_supervision(teacher, Shrinking(zip(IMAGES.split(1), LABELS.split(1), strict=True)), words={"last": 4})


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        ({"image": IMAGES, "label": LABELS}, "a dict"),
        ((IMAGES, LABELS, LABELS), "a tuple of 3"),
        (IMAGES, "a Tensor"),
        ((list(IMAGES), LABELS), "a list as images"),
        ((IMAGES.byte(), LABELS), r"images \(30, 1, 8, 8\) of torch.uint8"),
        ((IMAGES[0], LABELS[:1]), r"images \(1, 8, 8\)"),
        ((IMAGES.double(), LABELS), r"does not take the loader's images \(1, 1, 8, 8\) of torch.float64"),
        ((IMAGES.half(), LABELS), "does not take the loader's images .* of torch.float16"),
        ((IMAGES.expand(-1, 3, -1, -1), LABELS), r"does not take the loader's images \(1, 3, 8, 8\)"),
        ((Image.new("RGB", (8, 8)), 1), "an? Image as images"),
        ((IMAGES, nn.functional.one_hot(LABELS).float()), r"labels .* torch.float32 \(30, 3\)"),
        ((IMAGES, LABELS.tolist()), "labels .* no tensor"),
        ((IMAGES, LABELS[:4]), "there are 30 images"),
    ],
)
def test_a_batch_that_is_no_pair_says_what_one_is(teacher, batch, what):
    with pytest.raises(ValueError, match=rf"{what}.*; a batch must be a pair \(images, labels\)"):
        make_supervision(teacher, [batch], words={"last": 4})


@pytest.mark.parametrize("loader", [4, None, nn.Identity()])
def test_a_loader_that_is_none_is_refused(teacher, loader):
    with pytest.raises(ValueError, match=f"the loader is a {type(loader).__name__}"):
        make_supervision(teacher, loader, words={"last": 4})


class Twice:
    """A loader that gives something else in its last run."""

    def __init__(self, usual, last):
        self.runs, self.usual, self.last = 0, usual, last

    def __iter__(self):
        self.runs += 1
        return iter(self.usual if self.runs < 3 else self.last)


@pytest.mark.parametrize("task", [{"words": {"last": 4}}, {"decisions": {"first": 2}, "num_classes": 3}])
@pytest.mark.parametrize(
    "last",
    [
        [(IMAGES.flip(3), LABELS)],
        [(IMAGES, LABELS.roll(1))],
        [(IMAGES + 1e-4 * torch.randn(IMAGES.shape), LABELS)],
        [(torch.cat((IMAGES[:1], IMAGES[:-1])), LABELS)],
        [],
        [(IMAGES, LABELS), (IMAGES, LABELS)],
    ],
    ids=["flipped", "other labels", "noise", "one twice", "nothing", "more"],
)
def test_other_images_in_the_second_run_are_noticed(teacher, task, last):
    with pytest.raises(ValueError, match="the loader gave other images in its second run"):
        make_supervision(teacher, Twice([(IMAGES, LABELS)], last), **task)


def test_the_order_of_the_second_run_is_free(teacher):
    order = torch.randperm(30)
    shuffled = list(zip(IMAGES[order].split(7), LABELS[order].split(7), strict=True))
    make_supervision(teacher, Twice([(IMAGES, LABELS)], shuffled), words={"last": 4})


def test_images_have_one_size(teacher):
    batches = [(IMAGES, LABELS), (IMAGES.repeat(1, 1, 2, 2), LABELS)]
    with pytest.raises(ValueError, match=r"images \(1, 8, 8\) and \(1, 16, 16\); one size"):
        make_supervision(teacher, batches, words={"last": 4})


@pytest.mark.parametrize("images", [torch.zeros(30, 1, 8, 8), torch.full((30, 1, 8, 8), 0.3)])
def test_a_map_without_differences_is_named(images):
    net = nn.Sequential(OrderedDict(point=nn.Conv2d(1, 4, 1)))
    with pytest.raises(ValueError, match="no direction separates the classes at 'point'"):
        make_supervision(net, [(images, LABELS)], decisions={"point": 2}, num_classes=3)
    with pytest.raises(ValueError, match="k-means needs different patches; all 1920 are equal at 'point'"):
        make_supervision(net, [(images, LABELS)], words={"point": 2})


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (len, "a torch module is needed"),
        (nn.Identity(), "a Identity without parameters"),
        (torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 1))), "a module of torch.jit, which takes no hooks"),
    ],
    ids=["no module", "without parameters", "scripted"],
)
def test_what_is_no_network_is_refused(teacher, network, complaint):
    with pytest.raises(ValueError, match=f"the teacher is .*{complaint}"):
        make_supervision(network, LOADER, words={"last": 4})
    with pytest.raises(ValueError, match=f"the network is .*{complaint}"):
        attach(network, {"last": 4}, images=IMAGES)


NOT_COUNTS = (True, 0, -1, 1.5, "4096", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"words": {"last": value}}, f"words of 'last' is {value!r}") for value in NOT_COUNTS),
        *(({"decisions": {"first": value}, "num_classes": 3}, f"of 'first' is {value!r}") for value in NOT_COUNTS),
        *(({"max_patches": value}, f"'max_patches' is {value!r}") for value in NOT_COUNTS),
        *(({"num_components": value}, f"'num_components' is {value!r}") for value in NOT_COUNTS),
        *(({"num_classes": value}, f"'num_classes' is {value!r}") for value in NOT_COUNTS[:-1]),
        *(({"pooling": value}, f"pooling of 'last' is {value!r}") for value in NOT_COUNTS),
        *(({"seed": value}, f"'seed' is {value!r}") for value in (True, -1, 1.5, "1", None, 2**32)),
        ({"words": 4096}, "'words' is 4096"),
        ({"words": {"last": 1}}, "words of 'last' is 1; at least 2"),
        ({"progress": 3}, r"'progress' is 3 \(int\); a function"),
        ({"words": {"lst": 4}}, r"has no module 'lst'; did you mean 'last'\? known: first, last, pool"),
        ({"words": {"": 4}}, "has no module ''"),
        ({"channels_last": 1}, r"channels_last of 'last' is 1 \(int\); True or False"),
    ],
)
def test_options_are_checked(teacher, options, message):
    with pytest.raises(ValueError, match=message):
        make_supervision(teacher, LOADER, **{"words": {"last": 4}} | options)
