"""Weights as other libraries save them: every layout is written by the library itself, and read as the same network."""

import argparse
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file, save_model
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from architectures import create_model
from architectures.classifier import classifier_of, num_classes_in
from engine import weights as engine_weights
from engine.weights import read_published
from storage.state_dicts import load_strictly
from storage.weight_files import WRAPPERS, fitted, name_of_weights

NETWORK, NUM_CLASSES = "resnet8", 3


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return create_model(NETWORK, num_classes=NUM_CLASSES)


def drawn_again() -> nn.Module:
    torch.manual_seed(1)
    return create_model(NETWORK, num_classes=NUM_CLASSES)


class Named(nn.Module):
    """Whose network is called something."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def with_head_apart(network: nn.Module) -> nn.Module:
    """A backbone and a classifier beside it, as many trainings have them."""
    torch.manual_seed(0)
    backbone = create_model(NETWORK, num_classes=NUM_CLASSES)
    backbone.fc = nn.Identity()
    return Named(backbone=backbone, fc=network.fc)


def with_a_compiled_part(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    own = create_model(NETWORK, num_classes=NUM_CLASSES)
    own.layer1 = torch.compile(own.layer1)
    return own


# What stands around a network when its state dict is taken.
AROUND: dict[str, Callable[[nn.Module], nn.Module]] = {
    "nothing": lambda network: network,
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "a compiled part": with_a_compiled_part,
    "DataParallel of compiled": lambda network: nn.DataParallel(torch.compile(network)),
    "compiled DataParallel": lambda network: torch.compile(nn.DataParallel(network)),
    "AveragedModel": AveragedModel,
    "AveragedModel of compiled": lambda network: AveragedModel(torch.compile(network)),
    "DataParallel of AveragedModel": lambda network: nn.DataParallel(AveragedModel(network)),
    "EMA of timm": lambda network: ModelEmaV3(network, foreach=False),
    "model": lambda network: Named(model=network),
    "backbone": lambda network: Named(backbone=network),
    "any name": lambda network: Named(my_net=network),
    "names in names": lambda network: nn.DataParallel(Named(model=Named(encoder=torch.compile(network)))),
    "head apart": with_head_apart,
}


def check_same(path: str | Path, network: nn.Module) -> None:
    found = read_published(path, NETWORK)
    own = network.state_dict()
    assert found.state.keys() == own.keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in own.items())
    assert found.num_classes == NUM_CLASSES and found.data is None
    create_model(NETWORK, num_classes=NUM_CLASSES).load_state_dict(found.state)


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_names_lose_what_stands_around_a_network(around, network, tmp_path):
    torch.save(around(network).state_dict(), tmp_path / "weights.pth")
    check_same(tmp_path / "weights.pth", network)


@pytest.mark.parametrize("wrapper", [*WRAPPERS, "state_dict.model"])
def test_a_state_dict_is_found_in_what_is_around_it(wrapper, network, tmp_path):
    content = nn.DataParallel(network).state_dict()
    for key in reversed(wrapper.split(".")):
        content = {key: content, "epoch": 3, "args": argparse.Namespace(lr=0.1), "losses": [1.0]}
    torch.save(content, tmp_path / "weights.pth")
    check_same(tmp_path / "weights.pth", network)
    check_same(f"{tmp_path / 'weights.pth'}#{wrapper}", network)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
@pytest.mark.parametrize("around", ["nothing", "torch.compile", "backbone"])
def test_safetensors_are_read_by_any_name(around, name, network, tmp_path):
    save_model(AROUND[around](network), tmp_path / name)
    check_same(tmp_path / name, network)


@pytest.fixture
def checkpoint_of_timm(network, tmp_path) -> tuple[Path, nn.Module]:
    """What the training script of timm leaves, and the average of weights beside the plain ones."""
    averaged = ModelEmaV3(drawn_again(), foreach=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    saver = CheckpointSaver(
        network, optimizer, args=argparse.Namespace(model="resnet8"), model_ema=averaged, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(epoch=3, metric=70.0)
    return tmp_path / "checkpoint-3.pth.tar", averaged.module


def test_an_average_of_weights_is_taken_where_it_is_asked_for(checkpoint_of_timm, network, logged):
    engine_weights._say.cache_clear()
    path, averaged = checkpoint_of_timm
    check_same(path, network)
    assert f"{path} also holds state_dict_ema, which {path}#state_dict_ema takes" in logged.text
    logged.clear()
    check_same(f"{path}#state_dict_ema", averaged)
    assert "also holds" not in logged.text
    with pytest.raises(ValueError, match=r"no entry 'ema' with a state dict; it has state_dict, state_dict_ema"):
        read_published(f"{path}#ema", NETWORK)


def test_of_several_networks_in_a_file_one_is_chosen(network, tmp_path):
    path, other = tmp_path / "both.pth", drawn_again()
    torch.save({"model": network.state_dict(), "teacher": {"model": other.state_dict()}, "epoch": 1}, path)
    with pytest.raises(ValueError, match=rf"it holds 2; choose one: {path}#model, {path}#teacher.model$"):
        read_published(path, NETWORK)
    check_same(f"{path}#model", network)
    check_same(f"{path}#teacher", other)


def test_what_a_file_without_a_state_dict_holds_is_listed(network, tmp_path):
    path = tmp_path / "odd.pth"
    torch.save({"epoch": 3, "student": network.state_dict(), "optimizer": {"state": {}}}, path)
    with pytest.raises(ValueError, match=rf"its entries: epoch, student, optimizer; .*: {path}#student$"):
        read_published(path, NETWORK)
    check_same(f"{path}#student", network)


def test_a_name_with_the_mark_of_an_entry_in_it_is_a_file(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "run#3.pth")
    check_same(tmp_path / "run#3.pth", network)


def test_names_are_left_alone_where_they_are_those_of_the_network():
    state = {f"model.{name}": torch.ones(1) for name in ("a", "b")}
    assert fitted(state, {"model.a", "model.b"}).keys() == state.keys()
    assert fitted(state, {"a", "b", "c"}).keys() == {"a", "b"}
    assert fitted(state, {"other"}).keys() == state.keys()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/net.pth", "net"),
        ("a/net.pth#ema", "net-ema"),
        ("timm/net.a1_in1k", "net.a1_in1k"),
        ("net.v2.safetensors", "net.v2"),
    ],
)
def test_measurements_of_different_weights_have_different_names(source, name):
    assert name_of_weights(source) == name


# --- folders of Hugging Face -----------------------------------------------------------------------------------------


def test_a_folder_of_timm_is_read_with_what_it_tells(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=NUM_CLASSES)
    data = {"input_size": (3, 48, 48), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bicubic"}
    timm.models.save_for_hf(
        network, tmp_path / "net", model_config={"label_names": ["ant", "bee", "cat"]}, safe_serialization=True,
        data_config=data,
    )  # fmt: skip
    found = read_published(tmp_path / "net", "timm/test_resnet")
    own = network.state_dict()
    assert found.state.keys() == own.keys() and all(torch.equal(found.state[name], own[name]) for name in own)
    told = {"classes": ["ant", "bee", "cat"], "image_size": 48, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    told["interpolation"] = "bicubic"
    assert found.trained_with == told and found.num_classes == NUM_CLASSES
    with pytest.raises(ValueError, match=r"net is a test_resnet, whose tensors \(.*\) are not those of vgg8 \("):
        read_published(tmp_path / "net", "vgg8")


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
def test_the_shards_of_a_folder_are_put_together(safe, network, tmp_path):
    save_torch_state_dict(
        Named(timm_model=network).state_dict(), tmp_path, max_shard_size="100KB", safe_serialization=safe
    )
    assert len([path for path in tmp_path.iterdir() if path.suffix in (".safetensors", ".bin")]) > 1
    config = {"architectures": ["TimmWrapperForImageClassification"], "id2label": {"1": "bee", "0": "ant", "2": "cat"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    images = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    images["resample"] = 2
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    check_same(tmp_path, network)
    told = read_published(tmp_path, NETWORK).trained_with
    assert told.pop("interpolation") == "bilinear"
    assert told == {"classes": ["ant", "bee", "cat"], "image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    shard = next(path for path in tmp_path.iterdir() if "00002-of" in path.name)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"no file {shard}, which .* names: the folder is half a download"):
        read_published(tmp_path, NETWORK)


def test_labels_that_nobody_has_named_are_none(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}))
    assert read_published(tmp_path, NETWORK).trained_with == {}


def test_another_folder_is_refused_with_the_files_in_it(tmp_path):
    (tmp_path / "last.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is no folder of Hugging Face: .*; name a file in it: last\.pth$"):
        read_published(tmp_path, NETWORK)


# --- what cannot be used ---------------------------------------------------------------------------------------------


def torchscript(network: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def saved(network: nn.Module, content: object = None) -> bytes:
    buffer = io.BytesIO()
    torch.save(network.state_dict() if content is None else content, buffer)
    return buffer.getvalue()


def arrays(network: nn.Module) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.ones(3))
    return buffer.getvalue()


def as_safetensors(network: nn.Module) -> bytes:
    from safetensors.torch import save

    return save(network.state_dict())


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("/tmp/code-was-run",)


UNUSABLE = {
    "page": (lambda network: b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a page of the web"),
    "LFS pointer": (lambda network: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "nothing": (lambda network: b"", "it is empty"),
    "half": (lambda network: saved(network)[:-5000], "half a download: its end is missing"),
    "half of safetensors": (lambda network: as_safetensors(network)[:-40], "half a download: 40 bytes are missing"),
    "less of safetensors": (lambda network: as_safetensors(network)[:300], "half a download: "),
    "TorchScript": (torchscript, "a program of TorchScript; save the tensors"),
    "NumPy": (arrays, r"arrays of NumPy \(.npz\)"),
    "a network": (lambda network: saved(network, network), "is refused: it asks for architectures.* could run code"),
    "code": (lambda network: saved(network, {"model": RunsCode()}), "is refused: it asks for .*, which could run code"),
    "list": (lambda network: saved(network, [1, 2]), "holds a list, not a dictionary"),
}


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(("content", "told"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_a_file_is_that_cannot_be_used_is_said(content, told, name, network, tmp_path):
    path = tmp_path / name
    path.write_bytes(content(network))
    if name.endswith(".safetensors") and told.startswith(("is refused", "holds")):
        told = "is damaged, or no file of safetensors"
    with pytest.raises(ValueError, match=told) as caught:
        read_published(path, NETWORK)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("/tmp/code-was-run").exists()


ODD = {
    "sparse": (lambda weight: weight.to_sparse(), "sparse"),
    "quantised": (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "qint8"),
    "meta": (lambda weight: weight.to("meta"), "on the device meta"),
}


@pytest.mark.parametrize(("change", "told"), ODD.values(), ids=ODD)
def test_tensors_without_dense_numbers_are_named(change, told, network, tmp_path):
    state = network.state_dict()
    torch.save({"state_dict": state | {"fc.weight": change(state["fc.weight"])}}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=rf"odd.pth is no checkpoint: its tensor 'fc.weight' is .*{told}"):
        read_published(tmp_path / "odd.pth", NETWORK)


def test_a_pruned_network_is_refused_by_the_names_of_its_tensors(network, tmp_path):
    """Its weights are in two tensors, of which torch makes one when it runs."""
    pruned = drawn_again()
    prune.l1_unstructured(pruned.fc, "weight", amount=0.5)
    torch.save(pruned.state_dict(), tmp_path / "pruned.pth")
    found = read_published(tmp_path / "pruned.pth", NETWORK)
    with pytest.raises(ValueError, match=r"missing: fc\.weight; unexpected: fc\.weight_orig, fc\.weight_mask$"):
        load_strictly(network, found.state, source=found.source, what=NETWORK)


# --- numbers of classes ----------------------------------------------------------------------------------------------


def distilled(num_classes: int) -> nn.Module:
    """A small DeiT, which has two heads."""
    small = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return timm.create_model("deit_tiny_distilled_patch16_224", num_classes=num_classes, **small)


CLASSIFIERS = {
    "resnet8": {"fc.weight", "fc.bias"},
    "timm/test_vit": {"head.weight", "head.bias"},
    "torchvision/squeezenet1_1": {"classifier.1.weight", "classifier.1.bias"},
    f"{__name__}:distilled": {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"},
}


@pytest.mark.parametrize(("name", "tensors"), CLASSIFIERS.items())
def test_the_tensors_of_a_classifier_are_those_with_a_row_for_every_class(name, tensors):
    before = torch.get_rng_state()
    assert set(classifier_of(name)) == tensors
    assert torch.equal(torch.get_rng_state(), before)
    state = create_model(name, num_classes=7).state_dict()
    assert num_classes_in(name, state) == 7
    assert num_classes_in(name, {key: value for key, value in state.items() if key not in tensors}) == 0
    assert num_classes_in(name, state | {min(tensors): torch.ones(5, 5, 5, 5)}) is None


# --- weights that libraries have downloaded --------------------------------------------------------------------------


@pytest.fixture
def caches(tmp_path, monkeypatch) -> Path:
    """Empty caches of Hugging Face and torch."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    engine_weights._say.cache_clear()
    return tmp_path


def test_weights_of_timm_are_taken_from_the_disk_alone(caches):
    name, tagged = "timm/test_resnet", "timm/test_resnet.r160_in1k"
    for source in (name, tagged):
        with pytest.raises(FileNotFoundError, match=r"not on this machine; get them: python -c .import timm; timm\.c"):
            read_published(source, name)
    torch.manual_seed(0)
    network = timm.create_model("test_resnet")
    repository = caches / "hub" / "models--timm--test_resnet.r160_in1k"
    folder = repository / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    save_file(network.state_dict(), folder / "model.safetensors")
    before = torch.get_rng_state()
    for source in (name, tagged):
        found, own = read_published(source, name), network.state_dict()
        assert found.state.keys() == own.keys() and all(torch.equal(found.state[key], own[key]) for key in own)
        assert found.num_classes == 1000 and found.trained_with["image_size"] == 160
        assert found.trained_with["mean"] == [0.5, 0.5, 0.5]
    assert torch.equal(torch.get_rng_state(), before)
    save_file({"conv1.weight": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="does not hold timm/test_resnet") as caught:
        read_published(name, name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"no weights timm/test_resnet\.other; there are: timm/test_resnet\.r160_in1k"):
        read_published("timm/test_resnet.other", name)


def test_weights_of_torchvision_are_taken_from_the_disk_alone(caches):
    name = "torchvision/squeezenet1_1"
    with pytest.raises(FileNotFoundError, match=r"get them: curl .*squeezenet1_1-.* https://download\.pytorch\.org"):
        read_published(name, name)
    network = create_model(name, num_classes=1000)
    path = caches / "torch" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    for source in (name, f"{name}.IMAGENET1K_V1"):
        found = read_published(source, name)
        assert torch.equal(found.state["classifier.1.bias"], network.classifier[1].bias)
        assert found.trained_with["image_size"] == 224 and found.num_classes == 1000
    with pytest.raises(ValueError, match=r"squeezenet1_1\.IMAGENET1K_V1$"):
        read_published(f"{name}.V9", name)
