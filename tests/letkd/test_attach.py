"""KD layers in any torch network, and their losses against a teacher."""

import copy
import weakref
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from architectures import create_model
from letkd import Student, attach, load_supervision, make_supervision

NUM_CLASSES = 3
IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(24) % NUM_CLASSES
LOADER = [(IMAGES[:16], LABELS[:16]), (IMAGES[16:], LABELS[16:])]


def network(width: int, stride: int = 2) -> nn.Sequential:
    """Maps of `width` channels at "stage.0" and "stage.1", 4 x 4 for a stride of 2."""

    def block(channels: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, width, 3, stride, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    torch.manual_seed(width)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, NUM_CLASSES))
    return nn.Sequential(OrderedDict(stage=nn.Sequential(block(3, stride), block(width)), head=head))


@pytest.fixture(scope="module")
def teacher():
    return network(8)


@pytest.fixture(scope="module")
def supervision(teacher):
    return make_supervision(
        teacher, LOADER, words={"stage.1": 5}, decisions={"stage.0": 2}, num_classes=NUM_CLASSES, num_components=2
    )


@pytest.fixture
def student(teacher, supervision):
    return attach(network(4), supervision, teacher=teacher)


# --- the student is the network with KD layers -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", [True, False])
def test_without_the_values_it_is_the_network(teacher, supervision, mode):
    student, alone = attach(network(4), supervision, teacher=teacher, alpha=0).train(mode), network(4).train(mode)
    assert torch.equal(student(IMAGES), alone(IMAGES))
    assert torch.equal(student.forward_with_losses(IMAGES, LABELS)[0], alone(IMAGES))


def test_with_the_values_it_is_the_network_with_the_layers_between(student):
    alone, (early, late) = network(4), (student.layers[name] for name in ("stage/0", "stage/1"))
    between = late(alone.stage[1](early(alone.stage[0](IMAGES))[0]))[0]
    torch.testing.assert_close(student(IMAGES), alone.head(between))


def test_alpha_can_be_given_by_path(teacher, supervision):
    student = attach(network(4), supervision, teacher=teacher, alpha={"stage.0": 0.5})
    assert {name: layer.alpha for name, layer in student.layers.items()} == {"stage/1": 1.0, "stage/0": 0.5}
    with pytest.raises(ValueError, match=r"alpha names 'stage.2', which is no map here; there is stage.1, stage.0"):
        attach(network(4), supervision, alpha={"stage.2": 0.5})


def test_call_signature_and_outputs_stay():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 4, 1)

        def forward(self, images, *, flip=False):
            return {"map": self.features(images.flip(3) if flip else images), "flipped": flip}

    student = attach(Detector(), {"features": 5}, images=IMAGES).eval()
    output = student(IMAGES, flip=True)
    assert output["flipped"] is True
    torch.testing.assert_close(output["map"], student(IMAGES.flip(3))["map"])


def test_the_network_keeps_its_modes_and_sees_no_image_in_training(supervision):
    net = network(4)
    net.stage[0].eval()
    before = copy.deepcopy(net.state_dict())
    attach(net, supervision)
    assert [net.training, net.stage.training, net.stage[0].training, net.stage[1].training] == [True, True, False, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_the_network_is_run_once_for_its_maps_and_once_for_each_layer():
    """At the size of the images; a larger image shows which axes of the maps grow."""
    net, sides = network(4), []
    with net.register_forward_pre_hook(lambda _module, images: sides.append(images[0].shape[-1])):
        attach(net, {"stage.0": 5, "stage.1": 5}, images=IMAGES)
    assert sides == [8, 128, 8, 8]


def test_layers_have_the_type_of_the_network(supervision):
    student = attach(network(4).double(), supervision)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float64}
    assert student(IMAGES.double()).dtype == torch.float64


# --- losses and gradients --------------------------------------------------------------------------------------------


def test_losses_are_those_of_the_framework():
    """The same teacher, student and supervision inside an `Objective`: the same logits, terms and gradients."""
    from objective_tools import batch_of, letkd_of

    torch.manual_seed(0)
    images = torch.randn(12, 3, 16, 16)
    teacher, backbone = (create_model(name, num_classes=NUM_CLASSES) for name in ("resnet14", "resnet8"))
    labels = torch.arange(12) % NUM_CLASSES
    made = make_supervision(
        teacher, [(images, labels)], words={"layer3": 6}, decisions={"layer3.0": 2}, num_classes=NUM_CLASSES
    )
    student = attach(copy.deepcopy(backbone), made, teacher=teacher)
    theirs = Student(
        backbone,
        {
            "penultimate": copy.deepcopy(student.layers["layer3"]),
            "intermediate": copy.deepcopy(student.layers["layer3/0"]),
        },
        {"penultimate": "layer3", "intermediate": "layer3.0"},
    )
    words, decisions = made["layer3"].module(), made["layer3.0"].module()
    objective = letkd_of(theirs, copy.deepcopy(teacher), words, decisions, image_size=16)
    assert {place: found.path for place, found in objective.teacher.network.maps.items()} == {
        "penultimate": "layer3",
        "intermediate": "layer3.0",
    }
    step = objective(batch_of(images, labels))
    logits, terms = student.forward_with_losses(images, labels)
    assert torch.equal(logits, step.logits)
    assert terms == {"layer3": step.terms["words"], "layer3.0": step.terms["decisions"]}
    assert student.distillation_loss(images, labels).keys() == terms.keys()
    (F.cross_entropy(logits, labels) + sum(terms.values())).backward()
    step.loss.backward()
    for ours, other in zip(student.parameters(), objective.student.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad)


def test_gradients_reach_all_of_the_student_and_nothing_of_the_teacher(student, teacher):
    logits, terms = student.forward_with_losses(IMAGES, LABELS)
    (F.cross_entropy(logits, LABELS) + sum(terms.values())).backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert [name for name, p in teacher.named_parameters() if p.grad is not None or p.requires_grad] == []
    assert not any(buffer.requires_grad for buffer in student.guidance.buffers())


def test_the_divergences_fall_and_the_teacher_stays(student, teacher):
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(student.train().parameters(), lr=0.02, momentum=0.9)
    seen = []
    for _ in range(60):
        logits, terms = student.forward_with_losses(IMAGES, LABELS)
        optimizer.zero_grad()
        (F.cross_entropy(logits, LABELS) + sum(terms.values())).backward()
        optimizer.step()
        seen.append({path: term.item() for path, term in terms.items()})
    assert all(0 < seen[-1][path] < 0.5 * seen[0][path] for path in ("stage.0", "stage.1")), (seen[0], seen[-1])
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_a_layer_without_supervision_has_no_loss(teacher, supervision):
    student = attach(network(4), {"stage.1": supervision["stage.1"], "stage.0": 7}, teacher=teacher)
    assert student.forward_with_losses(IMAGES, LABELS)[1].keys() == {"stage.1"}
    assert student.taps == {"stage.1": 5, "stage.0": 7}


def test_the_temperature_sharpens_the_words(teacher, supervision):
    sharp = attach(network(4), supervision, teacher=teacher, temperature=1000.0)
    scores_PK = sharp.forward_with_scores(IMAGES)[1]["stage.1"]
    nearest_P = supervision["stage.1"].module().hard_assignment(teacher.stage(IMAGES))
    torch.testing.assert_close(
        sharp.distillation_loss(IMAGES, LABELS)["stage.1"], F.cross_entropy(scores_PK, nearest_P), atol=1e-2, rtol=1e-2
    )


# --- the teacher is no part of the student ---------------------------------------------------------------------------


def test_the_state_dict_is_the_student_alone_and_goes_round(student, tmp_path):
    assert {name.split(".")[0] for name in student.state_dict()} == {"backbone", "layers"}
    assert [name.removeprefix("backbone.") for name in student.backbone.state_dict()] == list(network(4).state_dict())
    student.train()(IMAGES)
    torch.save({"taps": student.taps, "model": student.state_dict()}, tmp_path / "student.pth")

    saved = torch.load(tmp_path / "student.pth", weights_only=True)
    torch.manual_seed(5)
    deployed = attach(network(4), saved["taps"], images=IMAGES)
    deployed.load_state_dict(saved["model"])
    with torch.inference_mode():
        assert torch.equal(deployed.eval()(IMAGES), student.eval()(IMAGES))
    with pytest.raises(ValueError, match="attach the student with teacher="):
        deployed.distillation_loss(IMAGES, LABELS)


def test_what_a_student_is_saved_as_has_its_alphas(teacher, supervision, tmp_path):
    student = attach(network(4), supervision, teacher=teacher, alpha={"stage.0": 0, "stage.1": 0.25})
    student.train()(IMAGES)
    torch.save(
        {"taps": student.taps, "alphas": student.alphas, "model": student.state_dict()}, tmp_path / "student.pth"
    )

    saved = torch.load(tmp_path / "student.pth", weights_only=True)
    assert saved["alphas"] == {"stage.0": 0.0, "stage.1": 0.25}
    deployed = attach(network(4), saved["taps"], alpha=saved["alphas"], images=IMAGES)
    deployed.load_state_dict(saved["model"])
    with torch.inference_mode():
        assert torch.equal(deployed.eval()(IMAGES), student.eval()(IMAGES))


def test_moving_and_training_the_student_leave_the_teacher(student, teacher):
    assert {id(p) for p in student.parameters()}.isdisjoint({id(p) for p in teacher.parameters()})
    student.double().train()
    assert {p.dtype for p in teacher.parameters()} == {torch.float32} and not teacher.training


def test_a_deep_copy_shares_the_teacher_alone(student):
    twin = copy.deepcopy(student)
    before = twin.eval()(IMAGES)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(twin(IMAGES), before) and not torch.equal(student.eval()(IMAGES), before)
    assert twin.guidance is student.guidance
    assert twin.distillation_loss(IMAGES, LABELS).keys() == {"stage.0", "stage.1"}


def test_students_of_one_teacher_leave_nothing_on_it(supervision):
    """No hooks, and no maps of their last batch."""
    teacher, maps = network(8), []
    teacher.stage[1].register_forward_hook(lambda _module, _inputs, output: maps.append(weakref.ref(output)))
    students = [attach(network(4), supervision, teacher=teacher) for _ in range(3)]
    terms = [student.distillation_loss(IMAGES, LABELS) for student in students]
    assert terms[0] == terms[1] == terms[2]
    assert sum(len(module._forward_hooks) for module in teacher.modules()) == 1, "the one of this test"
    del terms
    assert len(maps) == 3 and all(map_BCHW() is None for map_BCHW in maps)


def test_a_map_may_teach_two_layers(teacher, supervision):
    student = attach(network(4), dict.fromkeys(("stage.0", "stage.1"), supervision["stage.1"]), teacher=teacher)
    assert all(term > 0 for term in student.distillation_loss(IMAGES, LABELS).values())


@pytest.mark.gpu
def test_the_teacher_follows_the_images(student, teacher):
    student.cuda()
    assert {p.device.type for p in teacher.parameters()} == {"cpu"}
    terms = student.distillation_loss(IMAGES.cuda(), LABELS.cuda())
    assert {term.device.type for term in terms.values()} == {"cuda"}
    teacher.cpu()


# --- grids -----------------------------------------------------------------------------------------------------------


def test_a_finer_teacher_is_pooled_to_the_grid_of_the_student(tmp_path):
    fine = network(8, stride=1)
    made = make_supervision(fine, LOADER, words={"stage.1": 5})
    with pytest.raises(
        ValueError,
        match=r"'stage.1' of the student has a grid of 4 x 4, the supervision of 'stage.1' one of 8 x 8: make it with "
        r"pooling=\{'stage.1': 2\}",
    ):
        attach(network(4), made, teacher=fine)
    make_supervision(fine, LOADER, words={"stage.1": 5}, pooling=2).save(tmp_path / "pooled.pt")
    made = load_supervision(tmp_path / "pooled.pt")
    student = attach(network(4), made, teacher=fine)
    (loss,) = student.distillation_loss(IMAGES, LABELS).values()

    scores_PK = student.forward_with_scores(IMAGES)[1]["stage.1"]
    pooled = F.avg_pool2d(fine.stage(IMAGES), 2)
    targets_PK = made["stage.1"].module().soft_assignment(pooled)
    torch.testing.assert_close(loss, F.kl_div(scores_PK.log_softmax(1), targets_PK, reduction="batchmean"))


def test_a_coarser_teacher_is_refused(teacher, supervision):
    with pytest.raises(ValueError, match=r"8 x 8, the supervision of 'stage.1' one of 4 x 4: take another map"):
        attach(network(4, stride=1), {"stage.1": supervision["stage.1"]}, teacher=teacher)


# --- tokens ----------------------------------------------------------------------------------------------------------


def transformer(**options) -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": NUM_CLASSES}
    return timm.create_model("vit_tiny_patch16_224", **sizes, **options)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_tokens_of_a_transformer_learn_from_maps_and_the_others_pass(teacher, supervision, options):
    student = attach(transformer(**options), {"blocks.0": supervision["stage.1"]}, teacher=teacher, alpha=0.5)
    assert student.taps == {"blocks.0": 5} and student.alphas == {"blocks.0": 0.5}
    logits, terms = student.forward_with_losses(IMAGES, LABELS)
    (F.cross_entropy(logits, LABELS) + sum(terms.values())).backward()
    assert [name for name, p in student.layers.named_parameters() if p.grad is None or not p.grad.any()] == []

    layer, prefix = student.layers["blocks/0"], student.backbone.num_prefix_tokens
    tokens = torch.randn(2, prefix + 16, 8)
    changed, scores = layer(tokens)
    patches = tokens[:, prefix:]
    output, expected = layer.layer(patches.mT.unflatten(2, (4, 4)))
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(changed, torch.cat((tokens[:, :prefix], output.flatten(2).mT), dim=1))
    with torch.inference_mode():
        torch.testing.assert_close(layer.eval()(tokens, with_scores=False)[0], layer(tokens)[0])


def test_a_transformer_teaches_its_patches_in_their_places():
    teacher = transformer().eval()
    made = make_supervision(teacher, LOADER, words={"blocks.1": 6})
    assert (made["blocks.1"].grid, made["blocks.1"].prefix, made["blocks.1"].channels) == ((4, 4), 1, 8)
    student = attach(network(4), {"stage.1": made["blocks.1"]}, teacher=teacher)
    scores_PK = student.forward_with_scores(IMAGES)[1]["stage.1"]
    (loss,) = student.distillation_loss(IMAGES, LABELS).values()
    outputs = []
    teacher.blocks[1].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    teacher(IMAGES)
    logits_PK = -torch.cdist(outputs[0][:, 1:].flatten(0, 1), made["blocks.1"].tensors["centroids"]).square()
    expected = F.kl_div(scores_PK.log_softmax(1), logits_PK.softmax(1), reduction="batchmean")
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_another_teacher_is_refused_and_a_wrapped_one_is_not(teacher, supervision):
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(ValueError, match=r"'stage.1' was made from another teacher .* make_supervision"):
        attach(network(4), supervision, teacher=other)
    attach(network(4), supervision, teacher=torch.compile(copy.deepcopy(teacher), backend="eager"))


def test_attaching_twice_is_refused(student):
    for net in (student, student.backbone):
        with pytest.raises(ValueError, match="has KD layers already"):
            attach(net, {"stage.1": 3}, images=IMAGES)


class Awkward(nn.Module):
    """Modules that run twice or never, or return a pair, tokens without a grid, or logits."""

    def __init__(self):
        super().__init__()
        self.twice, self.never = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.pair = nn.MaxPool2d(2, return_indices=True)
        self.tokens, self.logits = nn.Flatten(2), nn.Flatten()

    def forward(self, images):
        pooled, _ = self.pair(self.twice(self.twice(images)))
        return self.logits(pooled), self.tokens(pooled)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ({}, "no taps"),
        ({"layer9": 4}, "has no module 'layer9'; known: twice, never"),
        ({"twice": 4}, "'twice' runs 2 times for one image"),
        ({"never": 4}, "'never' runs 0 times"),
        ({"pair": 4}, "'pair' returns tuple; a KD layer needs a map"),
        ({"tokens": 4}, "'tokens' returns 3 tokens, 0 of them before the patches"),
        ({"logits": 4}, r"'logits' returns \(1, 48\); a KD layer needs a map"),
    ],
)
def test_a_tap_that_is_no_map_is_refused(taps, message):
    net = Awkward()
    with pytest.raises(ValueError, match=message):
        attach(net, taps, images=IMAGES)
    assert not any(module._forward_hooks for module in net.modules())


def test_images_of_another_size_are_refused_where_the_grids_differ(supervision):
    net = nn.Sequential(OrderedDict(stage=network(4).stage, pool=nn.AdaptiveAvgPool2d(4), late=nn.Conv2d(4, 3, 1)))
    student = attach(net, {"late": supervision["stage.1"]}, teacher=network(8))
    with pytest.raises(
        ValueError, match=r"\(24, 3, 16, 16\) give 384 patches at 'late' of the student and 1536 of the"
    ):
        student.distillation_loss(IMAGES.repeat(1, 1, 2, 2), LABELS)


def test_the_size_of_the_images_is_needed():
    with pytest.raises(ValueError, match="give images="):
        attach(network(4), {"stage.1": 5})


# --- a supervision that something can learn from ---------------------------------------------------------------------


def test_a_teacher_that_is_part_of_the_student_is_refused(teacher, supervision):
    other = network(8)
    other.load_state_dict(teacher.state_dict())
    borrowed = copy.deepcopy(other)
    borrowed.stage[1][0].weight.data = other.stage[1][0].weight.data
    nested = nn.Sequential(OrderedDict(stage=other.stage, head=nn.Flatten()))
    for net, shared in (
        (other, "all of their modules"),
        (nested, "module 'stage'"),
        (borrowed, "weights of 'stage.1.0"),
    ):
        with pytest.raises(ValueError, match=f"teacher and student share .*{shared}"):
            attach(net, supervision, teacher=other)
    with pytest.raises(ValueError, match="share all of their modules"):
        attach(other, supervision, teacher=torch.compile(other, backend="eager"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS - 1, "0 to 2; these are -1 to 1"),
        (LABELS + 1, "0 to 2; these are 1 to 3"),
        (F.one_hot(LABELS).float(), r"torch.float32 \(24, 3\)"),
        (LABELS.float(), r"torch.float32 \(24,\)"),
        (LABELS == 0, "torch.bool"),
        (LABELS[:7], r"shape \(7,\), and there are 24 images"),
        (F.one_hot(LABELS), r"shape \(24, 3\)"),
        (LABELS.tolist(), "no tensor"),
    ],
)
def test_labels_that_are_none_are_refused(student, labels, message):
    with pytest.raises(ValueError, match=f"labels must be whole numbers .*{message}"):
        student.distillation_loss(IMAGES, labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_of_any_whole_type_mean_the_same(student, dtype):
    assert student.distillation_loss(IMAGES, LABELS.to(dtype)) == student.distillation_loss(IMAGES, LABELS)


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel])
def test_a_wrapped_teacher_is_the_teacher(teacher, supervision, wrap):
    made = make_supervision(wrap(teacher), LOADER, words={"stage.1": 5})
    assert torch.equal(made["stage.1"].tensors["centroids"], supervision["stage.1"].tensors["centroids"])
    torch.manual_seed(0)
    student = attach(network(4), made, teacher=wrap(teacher))
    torch.manual_seed(0)
    other = attach(network(4), made, teacher=teacher)
    assert student.distillation_loss(IMAGES, LABELS) == other.distillation_loss(IMAGES, LABELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"taps": {"stage.1": tap}}, f"the tap of 'stage.1' is {tap!r}") for tap in (True, 0, -1, 1.5, "4096", None)),
        ({"taps": 4}, "'taps' is 4"),
        ({"taps": {"": 4}}, "has no module ''; known: stage, head"),
        (
            {"taps": {"stag.1": 4}},
            r"no module 'stag.1'; did you mean 'stage.1'\? known: stage, stage.0, stage.1, head",
        ),
        ({"taps": {"stage.1": np.float64(4)}}, r"'stage.1' is np.float64\(4.0\) \(float64\); a whole number"),
        ({"alpha": np.float32("nan")}, r"is np.float32\(nan\) \(float32\); a finite number"),
        ({"alpha": np.bool_(True)}, r"is np.True_ \(bool\); a finite number"),
        ({"alpha": torch.tensor(0.5)}, r"alpha of 'stage.1' is a tensor \(\); a finite number"),
        ({"taps": {3: 4}}, "has no module 3; known: stage, head"),
        *(({"alpha": alpha}, f"alpha of 'stage.1' is {alpha!r}") for alpha in ("1", True, float("nan"), None)),
        ({"alpha": {"stage.1": "1"}}, r"alpha of 'stage.1' is '1' \(str\); a finite number"),
        *(({"temperature": tau}, f"'temperature' is {tau!r}") for tau in (0, -1.0, "1", True, float("inf"))),
        ({"images": IMAGES[0]}, r"images= is a tensor \(3, 8, 8\)"),
        ({"images": IMAGES.numpy()}, "images= is a ndarray"),
        ({"images": IMAGES[:, :1]}, r"does not take a black image \(1, 1, 8, 8\): .* 3 channels"),
        ({"images": [1]}, r"images= is \[1\] \(list\)"),
        ({"channels_last": {"stage.1": "NHWC"}}, r"channels_last of 'stage.1' is 'NHWC' \(str\); True or"),
        ({"channels_last": {"stage.2": True}}, "channels_last names 'stage.2'"),
        ({"num_prefix_tokens": -1}, "num_prefix_tokens of 'stage.1' is -1; at least 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        attach(network(4), **{"taps": {"stage.1": 4}, "images": IMAGES} | options)


def test_numbers_of_numpy_are_numbers(teacher, tmp_path):
    """Wherever a number is whole, or real where one may be; a file takes them and gives Python's back."""
    options = {"pooling": np.int64(2), "num_components": np.int32(2), "seed": np.uint8(3), "max_patches": np.int64(100)}
    options |= {"num_classes": np.int64(NUM_CLASSES), "channels_last": np.bool_(False)}
    made = make_supervision(
        teacher, LOADER, words={"stage.1": np.int64(5)}, decisions={"stage.0": np.uint8(2)}, **options
    )
    made.save(tmp_path / "made.pt")
    read = load_supervision(tmp_path / "made.pt")
    assert {type(value) for tap in read.values() for value in (tap.pooling, tap.channels_last)} == {int, bool}
    taps, numbers = {"stage.1": np.int64(4)}, {"alpha": np.float32(0.5), "temperature": np.float64(2)}
    student = attach(network(4), taps, images=IMAGES, num_prefix_tokens=np.int8(0), **numbers)
    assert student.taps == {"stage.1": 4} and type(student.layers["stage/1"].alpha) is float


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, pixels, mask):
        return mask * self.conv(pixels)


def test_a_network_that_one_image_does_not_run_is_refused():
    with pytest.raises(ValueError, match=r"does not take a black image \(1, 3, 8, 8\): .* argument: 'mask'"):
        attach(TwoInputs(), {"conv": 4}, images=IMAGES)


def test_an_empty_batch_has_no_divergence(student):
    logits, losses = student.forward_with_losses(IMAGES[:0], LABELS[:0])
    assert logits.shape == (0, NUM_CLASSES)
    assert {path: loss.item() for path, loss in losses.items()} == {"stage.1": 0, "stage.0": 0}
    (logits.sum() + sum(losses.values())).backward()
    assert all(p.grad is not None and not p.grad.any() for p in student.parameters())
