"""An objective is one module: what it holds moves, is copied and is wrapped together."""

import copy
from collections import Counter

import pytest
import torch
from objective_tools import IMAGE_SIZE, SUM, objective_of_method
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dataloaders import Batch
from distillation.expressions import list_methods
from distillation.objective import Objective

COUNT = 8


@pytest.fixture
def objective() -> Objective:
    torch.manual_seed(0)
    return objective_of_method(SUM).train()


@pytest.fixture
def batch() -> Batch:
    pixels = torch.randint(256, (COUNT, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return Batch(pixels, torch.arange(COUNT), torch.arange(COUNT))


def all_tensors(objective: Objective) -> dict[str, Tensor]:
    """Of student, losses and teacher, and of what stands in front of the networks."""
    parts = {"": objective, "teacher.": objective.teacher.network.module, "its input.": objective.teacher.input}
    named = {prefix + name: each for prefix, part in parts.items() for name, each in part.named_parameters()}
    return named | {prefix + name: each for prefix, part in parts.items() for name, each in part.named_buffers()}


def test_everything_moves(objective):
    names = list(all_tensors(objective))
    assert {name.partition(".")[0] for name in names} == {"student", "losses", "input", "teacher", "its input"}
    assert "losses.words.codebook.centroids" in names and "losses.decisions.subclasses.centers" in names
    there = all_tensors(objective.to("meta"))
    assert list(there) == names and {each.device.type for each in there.values()} == {"meta"}


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_the_layout_of_all_kernels_follows(objective, layout):
    kernels = {
        name: kernel
        for name, kernel in all_tensors(objective.to(memory_format=layout)).items()
        if kernel.ndim == 4 and min(kernel.shape[1:3]) > 1  # of others both layouts are the same
    }
    assert {name.partition(".")[0] for name in kernels} == {"student", "teacher"}
    assert all(kernel.is_contiguous(memory_format=layout) for kernel in kernels.values())


def test_the_teacher_is_saved_with_nothing_and_stays_frozen(objective):
    assert not [name for name in objective.state_dict() if not name.startswith(("student.", "losses."))]
    objective.train()
    assert not objective.teacher.network.module.training
    assert not any(each.requires_grad for each in objective.teacher.network.module.parameters())


def test_networks_run_once_whatever_is_summed():
    """Every convolution, and what stands in front, once a step; of those that bring words there is one."""
    torch.manual_seed(0)
    objective = objective_of_method("+".join(name for name in list_methods() if name not in ("letKD-1", "QuEST")))
    networks = (objective.student, objective.teacher.network.module)
    counted = [each for network in networks for each in network.modules() if isinstance(each, nn.Conv2d)]
    calls = Counter()
    for module in (objective.input, *counted):
        module.register_forward_hook(lambda module, *_: calls.update([module]))
    pixels = torch.randint(256, (COUNT, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    objective.train()(Batch(pixels, torch.arange(COUNT), torch.arange(COUNT)))
    assert len(objective.losses) > 25 and calls == Counter([objective.input, *counted])


def test_a_deep_copy_is_whole_and_shares_nothing(objective, batch):
    twin = copy.deepcopy(objective)
    assert twin.network.module is twin.student and twin.network.backbone is twin.student.backbone
    own, other = all_tensors(objective), all_tensors(twin)
    assert list(own) == list(other) and not {id(each) for each in own.values()} & {id(each) for each in other.values()}
    terms = objective(batch).terms  # its student's layers are the twin's no longer
    for name, term in twin(batch).terms.items():
        assert torch.equal(term, terms[name]), name
    with torch.no_grad():
        for each in twin.student.parameters():
            each.zero_()
    assert objective(batch).terms["ce"] != twin(batch).terms["ce"]


def test_tells_where_every_loss_reads_what():
    found = objective_of_method("ReviewKD").describe()
    assert found["weights"] == {"ce": 1.0, "reviewkd": 5.0} and list(found["places"]) == ["reviewkd"]
    student, teacher = (found["places"]["reviewkd"][side] for side in ("student", "teacher"))
    assert list(student) == ["pooled", "stage1", "stage2", "stage3"]
    assert list(teacher) == ["pooled", "before stage1", "before stage2", "before stage3"]
    assert [place["channels"] for place in student.values()] == [64, 16, 32, 64]
    assert student["stage3"]["grid"] == [IMAGE_SIZE // 4] * 2 and "grid" not in student["pooled"]


def test_mixed_images_are_refused_where_a_loss_knows_one_label(objective, batch):
    mixed = batch._replace(other_labels=batch.labels.flip(0), share=torch.linspace(0, 1, COUNT))
    with pytest.raises(ValueError, match=r"^decisions cannot weigh the labels of mixed images; do not mix any$"):
        objective(mixed)


@pytest.fixture
def one_process(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("with_statistics", [False, True])
def test_distributed_data_parallel_gives_the_same_gradients(objective, batch, one_process, with_statistics):
    wrapped = DistributedDataParallel(copy.deepcopy(objective))
    steps = [each(batch, with_statistics=with_statistics) for each in (objective, wrapped)]
    assert steps[0].terms == steps[1].terms and steps[0].statistics.keys() == steps[1].statistics.keys()
    for step in steps:
        step.loss.backward()
    for (name, parameter), other in zip(objective.named_parameters(), wrapped.module.parameters(), strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, other.grad), name
