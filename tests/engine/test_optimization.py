"""Optimizers by name, what they train and how, what is frozen, and what of them goes into a checkpoint."""

import copy
import re
import sys

import pytest
import timm.optim
import torch
from objective_tools import IMAGE_SIZE, NUM_CLASSES, batch_of, objective_of_method
from torch import nn

from config.options import Protocol
from distillation.objective import Objective
from engine.optimization import check_optimizer, load_optimizer, make_optimizer
from engine.parameters import freeze, parameter_groups, rate_factors
from engine.schedule import set_learning_rate
from engine.step import descend


@pytest.fixture
def objective() -> Objective:
    """letKD-2, whose student has names with `backbone.` and `layers.`, and a loss that has parameters of its own."""
    torch.manual_seed(0)
    return objective_of_method("letKD-2+FitNet").train()


def a_step(objective: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (8, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)
    descend(optimizer, objective(batch_of(pixels, torch.arange(8) % NUM_CLASSES)).loss)


def names_of(objective: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    """What parameters are called in checkpoints."""
    called = {id(value): name.removeprefix("student.") for name, value in objective.named_parameters()}
    return {called[id(parameter)] for parameter in parameters}


def all_names(objective: nn.Module) -> set[str]:
    return names_of(objective, list(objective.parameters()))


def tensors_of(objective: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in objective.state_dict().items()}


# --- by name ---------------------------------------------------------------------------------------------------------


def test_the_default_is_the_papers(objective):
    optimizer = make_optimizer(objective, Protocol())
    (group,) = optimizer.param_groups
    expected = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "fused": None}
    assert type(optimizer) is torch.optim.SGD and {key: group[key] for key in expected} == expected
    assert [*map(id, group["params"])] == [*map(id, objective.parameters())]


def test_sgd_takes_torchs_steps_of_single_tensors(objective):
    """All tensors in one call are quicker, and change no bit."""
    twin = copy.deepcopy(objective)
    common = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    ours, theirs = make_optimizer(objective, Protocol()), torch.optim.SGD(twin.parameters(), **common, foreach=False)
    for seed in range(3):
        a_step(objective, ours, seed)
        a_step(twin, theirs, seed)
    assert ours.param_groups[0]["foreach"]
    for name, value in twin.state_dict().items():
        assert torch.equal(objective.state_dict()[name], value), name


def test_adamw_takes_the_step_of_torchs(objective):
    twin = copy.deepcopy(objective)
    a_step(objective, make_optimizer(objective, Protocol(optimizer="adamw", learning_rate=1e-3, weight_decay=0.1)))
    a_step(twin, torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.1))
    for name, value in twin.state_dict().items():
        assert torch.equal(objective.state_dict()[name], value), name


def test_timm_makes_its_own(objective):
    protocol = Protocol(optimizer="timm/lamb", learning_rate=1e-3, weight_decay=0.02, decay_norms_and_biases=False)
    optimizer = make_optimizer(objective, protocol)
    assert type(optimizer) is timm.optim.Lamb
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.02, 0.0}
    before = tensors_of(objective)
    a_step(objective, optimizer)
    assert all(not torch.equal(value, before[name]) for name, value in objective.named_parameters())


def test_betas_and_eps_are_those_that_are_given(objective):
    twin = copy.deepcopy(objective)
    protocol = Protocol(optimizer="adamw", learning_rate=1e-3, weight_decay=0.1, betas=[0.5, 0.9], eps=0.01)
    a_step(objective, make_optimizer(objective, protocol))
    a_step(twin, torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.5, 0.9), eps=0.01))
    for name, value in twin.state_dict().items():
        assert torch.equal(objective.state_dict()[name], value), name
    layer = nn.Linear(2, 2)
    for name, betas in {"adamw": [0.8, 0.9], "timm/lamb": [0.8, 0.9], "timm/adan": [0.8, 0.9, 0.95]}.items():
        (group,) = make_optimizer(layer, Protocol(optimizer=name, betas=betas, eps=1e-3)).param_groups
        assert (list(group["betas"]), group["eps"]) == (betas, 1e-3), name
    (own,) = make_optimizer(layer, Protocol(optimizer="timm/lamb")).param_groups
    assert (own["betas"], own["eps"]) == ((0.9, 0.999), 1e-6)  # timm's


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"betas": [0.9, 0.99]}, "optimizer=sgd has no betas; leave betas=[0.9, 0.99] out"),
        ({"eps": 1e-6}, "optimizer=sgd has no eps; leave eps=1e-06 out"),
        ({"optimizer": "timm/lion", "eps": 1e-6}, "optimizer=timm/lion has no eps; leave eps=1e-06 out"),
        ({"optimizer": "timm/nadam", "betas": [0.9]}, "betas=[0.9] must be 2 numbers for optimizer=timm/nadam"),
        ({"optimizer": "adamw", "betas": [0.9, 0.9, 0]}, "betas=[0.9, 0.9, 0] must be 2 numbers for optimizer=adamw"),
    ],
)
def test_betas_and_eps_that_an_optimizer_does_not_have_are_refused(options, error):
    with pytest.raises(ValueError, match=f"^{re.escape(error)}$"):
        check_optimizer(Protocol(**options))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("adamv", "unknown optimizer 'adamv'; did you mean 'adamw'? known: sgd, adamw, timm/NAME"),
        ("timm/lam", "unknown optimizer 'timm/lam'; did you mean 'timm/lamb' or "),
        ("timm/adahessian", "optimizer=timm/adahessian needs gradients of gradients, "),
    ],
)
def test_an_optimizer_that_cannot_be_made_is_refused(name, error):
    with pytest.raises(ValueError, match=f"^{re.escape(error)}") as caught:
        check_optimizer(Protocol(optimizer=name))
    assert "\n" not in str(caught.value)


def test_what_an_optimizer_of_timm_needs_is_said(monkeypatch):
    def create(*given, **named):
        raise ImportError("no apex here\nand more")

    monkeypatch.setattr(timm.optim, "create_optimizer_v2", create)
    with pytest.raises(ValueError, match=r"^optimizer=timm/lamb cannot be made here \(no apex here\); choose another$"):
        check_optimizer(Protocol(optimizer="timm/lamb"))


def test_without_timm_the_error_says_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    needed = "optimizer=timm/lamb needs timm; install it: python -m pip install -r requirements-networks.txt"
    with pytest.raises(ValueError, match=f"^{re.escape(needed)}$"):
        check_optimizer(Protocol(optimizer="timm/lamb"))
    check_optimizer(Protocol())


# --- groups ----------------------------------------------------------------------------------------------------------


def test_norms_biases_and_scales_need_not_decay(objective):
    groups = parameter_groups(objective, Protocol(decay_norms_and_biases=False))
    by_decay = {group["weight_decay"]: names_of(objective, group["params"]) for group in groups}
    assert set(by_decay) == {5e-4, 0.0} and by_decay[5e-4] | by_decay[0.0] == all_names(objective)
    assert {"backbone.conv1.weight", "backbone.fc.weight", "layers.penultimate.semantic_vectors"} <= by_decay[5e-4]
    left = {"backbone.bn1.weight", "backbone.fc.bias", "layers.intermediate.bn.bias", "layers.penultimate.scale"}
    assert left <= by_decay[0.0]
    for group in groups:
        assert {parameter.ndim <= 1 for parameter in group["params"]} == {group["weight_decay"] == 0}


@pytest.mark.parametrize("options", [{}, {"learning_rates": ["layers=3"]}], ids=["one", "factors"])
def test_no_weight_decay_makes_the_same_groups(options, objective):
    """So a run goes on with another, 0 or not; what decays and what does not are one group by default."""
    for decay in (True, False):
        none, some = (
            parameter_groups(objective, Protocol(weight_decay=value, decay_norms_and_biases=decay, **options))
            for value in (0.0, 5e-4)
        )
        assert [[*map(id, group["params"])] for group in none] == [[*map(id, group["params"])] for group in some]
        assert len(some) == (1 if decay else 2) * (2 if options else 1)
        assert {group["weight_decay"] for group in none} == {0.0}


def test_what_networks_of_timm_want_no_decay_of_has_none():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=2, depth=1)
    network = nn.ModuleDict({"student": vit})
    groups = parameter_groups(network, Protocol(decay_norms_and_biases=False))
    left = next(names_of(network, group["params"]) for group in groups if group["weight_decay"] == 0)
    assert {"pos_embed", "cls_token", "norm.weight", "head.bias"} <= left and "head.weight" not in left


def test_the_last_pattern_that_fits_is_the_factor_of_the_rate(objective):
    protocol = Protocol(learning_rates=["backbone=0.1", "backbone.fc.*=2", "losses.fitnet=0.5"])
    optimizer = make_optimizer(objective, protocol)
    set_learning_rate(optimizer, 0.3)
    rates = {}
    for group in optimizer.param_groups:
        rates |= dict.fromkeys(names_of(objective, group["params"]), group["lr"])
    assert set(rates) == all_names(objective)
    for name, rate in rates.items():
        factor = 2 if name.startswith("backbone.fc.") else 0.1 if name.startswith("backbone.") else 1
        assert rate == pytest.approx(0.3 * (0.5 if name.startswith("losses.fitnet.") else factor)), name


@pytest.mark.parametrize(
    "said", ["backbone", "backbone=", "=0.1", "backbone=fast", "backbone=0", "a=-1", "a=nan", "a=inf"]
)
def test_a_factor_that_is_none_is_refused(said):
    with pytest.raises(ValueError, match=f"^learning_rates: '{said}' must be a pattern and a factor above 0, like "):
        rate_factors(["conv1=0.5", said])
    assert rate_factors(["a=b=0.5"]) == [("a=b", 0.5)]


@pytest.mark.parametrize("option", ["freeze", "learning_rates"])
def test_a_pattern_that_names_nothing_is_refused_with_what_there_is(option, objective):
    with pytest.raises(ValueError, match=f"^{option}: nothing here is called 'bakbone.conv1'; there are ") as caught:
        if option == "freeze":
            freeze(objective, ["backbone.bn1", "bakbone.conv1"])
        else:
            parameter_groups(objective, Protocol(learning_rates=["bakbone.conv1=0.5"]))
    assert "backbone.conv1, backbone.bn1, backbone.layer1" in str(caught.value)
    assert all(parameter.requires_grad for parameter in objective.parameters())


# --- frozen ----------------------------------------------------------------------------------------------------------


def test_what_is_frozen_stays_with_its_statistics_and_the_rest_learns(objective):
    norms = freeze(objective, ["backbone.conv1", "backbone.bn1", "backbone.layer1.*"])
    paths = {module: path for path, module in objective.student.backbone.named_modules()}
    assert {paths[norm] for norm in norms} == {"bn1", "layer1.0.bn1", "layer1.0.bn2"}
    for norm in norms:
        norm.eval()
    before, optimizer = tensors_of(objective), make_optimizer(objective, Protocol())
    a_step(objective, optimizer)
    frozen = ("student.backbone.conv1.", "student.backbone.bn1.", "student.backbone.layer1.")
    changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(frozen) for name in changed)
    trains = {name for name, _ in objective.named_parameters() if not name.startswith(frozen)}
    assert trains <= changed and "student.backbone.layer2.0.bn1.running_mean" in changed
    assert all(value.grad is None for name, value in objective.named_parameters() if name.startswith(frozen))


def test_a_batch_norm_whose_weights_alone_are_frozen_goes_on_with_its_statistics(objective):
    assert freeze(objective, ["*.bn1.weight", "*.bn1.bias"]) == []
    assert not objective.student.backbone.bn1.weight.requires_grad


def test_dropout_of_a_frozen_part_goes_on():
    body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    assert freeze(nn.ModuleDict({"body": body, "head": nn.Linear(4, 2)}), ["body"]) == [body[1]]


def test_a_kd_layer_may_be_frozen(objective):
    """It normalises by its own statistics, which a step of its own kernels has to follow."""
    norms = freeze(objective, ["layers"])
    assert [type(norm) for norm in norms] == [nn.BatchNorm1d, nn.BatchNorm1d]
    for norm in norms:
        norm.eval()
    before = tensors_of(objective)
    a_step(objective, make_optimizer(objective, Protocol()))
    assert all(torch.equal(objective.state_dict()[name], before[name]) for name in before if ".layers." in name)
    assert not torch.equal(objective.student.backbone.conv1.weight, before["student.backbone.conv1.weight"])


def test_something_has_to_train(objective):
    with pytest.raises(ValueError, match=r"^freeze=\['\*'\] leaves nothing that trains$"):
        freeze(objective, ["*"])


# --- clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "factor"), [(10.0, 0.1), (0.5, 1.0)], ids=["large", "small"])
def test_gradients_are_clipped_by_the_norm_of_all(norm, factor):
    layers = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    for layer, share in zip(layers, (0.6, 0.8), strict=True):
        layer.weight.grad = torch.zeros(2, 2)
        layer.weight.grad[0, 1] = norm * share
    before = [layer.weight.detach().clone() for layer in layers]
    protocol = Protocol(learning_rate=1.0, momentum=0.0, nesterov=False, weight_decay=0.0, clip_gradients=1.0)
    make_optimizer(layers, protocol).step()
    for layer, weight, share in zip(layers, before, (0.6, 0.8), strict=True):
        assert (weight - layer.weight)[0, 1].item() == pytest.approx(norm * share * factor, rel=1e-4)


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adamw", "timm/lamb", "timm/lion", "timm/muon", "timm/adafactor"])
def test_an_optimizer_goes_on_as_if_nothing_had_been(name, objective):
    protocol = Protocol(optimizer=name, learning_rate=1e-3, decay_norms_and_biases=False, learning_rates=["layers=3"])
    optimizer = make_optimizer(objective, protocol)
    a_step(objective, optimizer)
    twin, state = copy.deepcopy(objective), copy.deepcopy(optimizer.state_dict())
    restored = make_optimizer(twin, protocol)
    load_optimizer(restored, state)
    for number in (1, 2):
        a_step(objective, optimizer, number)
        a_step(twin, restored, number)
    for key, value in twin.state_dict().items():
        assert torch.equal(objective.state_dict()[key], value), key


def test_settings_are_those_of_the_run_that_goes_on():
    layer = nn.Linear(2, 2)
    first = make_optimizer(layer, Protocol(momentum=0.9, decay_norms_and_biases=False))
    second = make_optimizer(layer, Protocol(momentum=0.5, weight_decay=1e-2, decay_norms_and_biases=False))
    load_optimizer(second, first.state_dict())
    assert [group["weight_decay"] for group in second.param_groups] == [1e-2, 0.0]
    assert {group["momentum"] for group in second.param_groups} == {0.5}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda state: state["state"][0].update(exp_avg=torch.zeros(3)), "^exp_avg of shape"),
        (lambda state: state["state"][0].update(exp_avg=torch.zeros(2, 2).to_sparse()), "^exp_avg of shape"),
        (lambda state: state["state"][0].update(step=torch.zeros(2)), "^step of shape"),
        (
            lambda state: state["param_groups"].pop(),
            r"^it has groups of \[1\] parameters, and this run has groups of \[1, 1\]$",
        ),
        (
            lambda state: state["param_groups"][0]["params"].append(2),
            r"^it has groups of \[2, 1\] parameters, and this run has groups of \[1, 1\]$",
        ),
    ],
    ids=["shape", "sparse", "count", "groups", "size"],
)
def test_a_state_that_does_not_fit_is_refused(spoil, said):
    layer = nn.Linear(2, 2)
    optimizer = make_optimizer(layer, Protocol(optimizer="adamw", decay_norms_and_biases=False))
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    spoil(state)
    with pytest.raises(ValueError, match=said):
        load_optimizer(optimizer, state)


# --- recorded steps --------------------------------------------------------------------------------------------------


def test_the_rate_of_a_recorded_step_is_a_tensor_where_every_step_has_another(objective):
    """And the fused form of SGD, which reads it, takes the steps of the other."""
    cosine = Protocol(schedule="cosine", learning_rates=["layers=0.5"])
    twin = copy.deepcopy(objective)
    recorded, plain = make_optimizer(objective, cosine, recorded=True), make_optimizer(twin, cosine)
    tensors = [group["lr"] for group in recorded.param_groups]
    assert all(isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 for tensor in tensors)
    for number, rate in enumerate((0.05, 0.02)):
        for each, optimizer in ((objective, recorded), (twin, plain)):
            set_learning_rate(optimizer, rate)
            a_step(each, optimizer, number)
    assert [group["lr"] for group in recorded.param_groups] == tensors
    for name, value in twin.named_parameters():
        torch.testing.assert_close(objective.get_parameter(name), value, rtol=1e-4, atol=1e-6)
    load_optimizer(recorded, copy.deepcopy(recorded.state_dict()))
    assert all(group["lr"] is tensor for group, tensor in zip(recorded.param_groups, tensors, strict=True))


@pytest.mark.parametrize("options", [{}, {"schedule": "constant"}], ids=["step", "constant"])
def test_a_rate_that_seldom_changes_stays_a_number(options, objective):
    (group,) = make_optimizer(objective, Protocol(**options), recorded=True).param_groups
    assert isinstance(group["lr"], float) and not group["fused"]


def test_adamw_counts_its_steps_on_the_device_of_a_recorded_step(objective):
    (group,) = make_optimizer(objective, Protocol(optimizer="adamw"), recorded=True).param_groups
    assert group["capturable"] and isinstance(group["lr"], float)
