"""Where KD layers can stand: behind modules that run once, whose patches the network's output depends on."""

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from letkd import attach
from letkd.maps import Layout, layouts
from letkd.reach import check_layers, reaches_output

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IMAGE_SHAPE = tuple(IMAGES.shape[1:])


def transformer(**options: Any) -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 8, "depth": 3, "num_heads": 2, "num_classes": 4}
    return timm.create_model("vit_tiny_patch16_224", **sizes, **options)


def zeros_for_a_head(**_: Any) -> nn.Module:
    """torchvision's transformer starts from logits of 0, through which no gradient passes."""
    network = torchvision.models.VisionTransformer(8, 2, 3, 2, 8, 16, num_classes=4)
    assert not network.heads.head.weight.any()
    return network


def places_of(network: nn.Module, paths: list[str]) -> dict[str, bool]:
    found = layouts(network, paths, IMAGE_SHAPE)
    return {path: reaches_output(network, path, layout, IMAGE_SHAPE) for path, layout in found.items()}


# --- what reaches the logits -----------------------------------------------------------------------------------------

BLOCKS = ["blocks.0", "blocks.1", "blocks.2", "norm"]
ENCODER = [f"encoder.layers.encoder_layer_{number}" for number in range(3)] + ["encoder"]


@pytest.mark.parametrize("on_meta", [False, True])
@pytest.mark.parametrize(
    ("make", "options", "paths", "behind_the_last_block"),
    [
        (transformer, {}, BLOCKS, False),
        (transformer, {"reg_tokens": 2}, BLOCKS, False),
        (transformer, {"global_pool": "avg", "fc_norm": False}, BLOCKS, True),
        (transformer, {"class_token": False, "global_pool": "map"}, BLOCKS, True),
        (zeros_for_a_head, {}, ENCODER, False),
    ],
    ids=["class token", "registers", "mean", "attention", "zeros"],
)
def test_patches_reach_the_class_token_up_to_the_last_block(make, options, paths, behind_the_last_block, on_meta):
    network = make(**options)
    if on_meta:
        network = network.to("meta")
    assert list(places_of(network, paths).values()) == [True, True, behind_the_last_block, behind_the_last_block]


def test_the_measure_agrees_with_the_gradient():
    """Of logits, in the patches of every module of a block; and nothing is changed by it."""
    torch.manual_seed(0)
    network = transformer()
    paths = [name for name, _ in network.named_modules() if name.startswith("blocks.") and name.count(".") < 3]
    state, modes = {key: value.clone() for key, value in network.state_dict().items()}, network.training
    measured = places_of(network, paths)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert network.training == modes and not any(module._forward_hooks for module in network.modules())
    outputs: dict[str, Tensor] = {}
    for path in paths:
        network.get_submodule(path).register_forward_hook(lambda *call, path=path: outputs.update({path: call[2]}))
    logits = network.eval()(IMAGES)
    for path, output in outputs.items():
        (gradient,) = torch.autograd.grad(logits.square().sum(), output, retain_graph=True)
        assert measured[path] == bool(gradient[:, 1:].any()), path
    assert set(measured.values()) == {True, False}


class Branch(nn.Module):
    """Two maps of which the logits need one."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.unused(images)
        return {"logits": self.fc(self.used(images).relu().mean(dim=(2, 3)))}


class RefusesNaN(Branch):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(images)
        if outputs["logits"].isnan().any():
            raise ValueError("not a number")
        return outputs


def test_maps_of_any_network_and_outputs_of_any_kind():
    assert places_of(Branch(), ["used", "unused"]) == {"used": True, "unused": False}
    assert places_of(RefusesNaN(), ["used"]) == {"used": True}, "what is not known is not refused"


class RefusesNaNTwice(RefusesNaN):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        super().forward(images)
        return super().forward(images)


def test_calls_are_counted_also_where_a_network_refuses_nan_in_the_first():
    layers = [("used", Layout(4, IMAGE_SHAPE[1:]), 1.0)]
    check_layers(RefusesNaN(), layers, IMAGE_SHAPE)
    with pytest.raises(ValueError, match="'used' runs 2 times"):
        check_layers(RefusesNaNTwice(), layers, IMAGE_SHAPE)


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["blocks.2", "norm"])
def test_a_layer_whose_values_would_be_lost_is_refused(path):
    told = f"does not depend on the patches of '{path}': the values of a KD layer there would change nothing; take"
    with pytest.raises(ValueError, match=told):
        attach(transformer(), {path: 5}, images=IMAGES)
    with pytest.raises(ValueError, match=told):
        attach(transformer(), {"blocks.0": 5, path: 5}, images=IMAGES, alpha={path: 0.5, "blocks.0": 0})


def test_a_layer_that_is_supervised_only_may_be_anywhere():
    student = attach(transformer(), {"norm": 5}, images=IMAGES, alpha=0).train()
    student.forward_with_scores(IMAGES)[1]["norm"].square().sum().backward()
    assert student.layers["norm"].layer.scores.templates.grad.any()


def test_the_values_of_the_last_layer_that_is_allowed_are_learnt():
    torch.manual_seed(0)
    student = attach(transformer(), {"blocks.1": 5}, images=IMAGES).train()
    student(IMAGES).square().sum().backward()
    assert [name for name, p in student.layers.named_parameters() if p.grad is None or not p.grad.any()] == []
