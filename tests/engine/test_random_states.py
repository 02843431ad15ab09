"""States of the random number generators, of a GPU too, which a run goes on with on another machine."""

import random
from collections.abc import Callable

import pytest
import torch

from engine.checkpoints import random_states, restore_random_states
from letkd.processes import ALONE, Member

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Gpus:
    """Generators of GPUs that are not there, of which the program has one."""

    def __init__(self, number: int, current: int = 0):
        self.states = [torch.tensor([10 * gpu], dtype=torch.uint8) for gpu in range(number)]
        self.current = current

    def set(self, state: torch.Tensor) -> None:
        self.states[self.current] = state

    def set_all(self, states: list[torch.Tensor]) -> None:
        self.states = states


@pytest.fixture
def machine(monkeypatch) -> Callable[..., Gpus]:
    """Goes to a machine with so many GPUs."""

    def go(number: int, current: int = 0) -> Gpus:
        gpus = Gpus(number, current)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: gpus.states[gpus.current])
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: list(gpus.states))
        monkeypatch.setattr(torch.cuda, "set_rng_state", gpus.set)
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", gpus.set_all)
        return gpus

    return go


@pytest.mark.parametrize("number", [1, 2, 8])
def test_a_gpu_draws_on_whatever_else_is_in_the_machine(number, machine, caplog):
    machine(4, current=1)
    states = random_states()
    assert [state.tolist() for state in states["cuda"]] == [[10]]
    gpus = machine(number)
    others = gpus.states[1:]
    with caplog.at_level("INFO", logger="letKD.run"):
        restore_random_states(states, GPU)
    assert gpus.states[0].tolist() == [10] and gpus.states[1:] == others
    assert not caplog.records


def test_of_an_older_file_the_first_gpu_is_taken(machine):
    """The one that a run had which did not say which."""
    older = machine(2)
    states = random_states() | {"cuda": [torch.tensor([7], dtype=torch.uint8), older.states[1]]}
    gpus = machine(1)
    restore_random_states(states, GPU)
    assert [state.tolist() for state in gpus.states] == [[7]]


@pytest.mark.parametrize(("device", "number"), [(GPU, 1), (CPU, 1), (CPU, 0)], ids=str)
def test_a_gpu_that_begins_anew_is_mentioned(device, number, machine, caplog):
    """A run on a CPU does not care."""
    machine(0)
    states = random_states()
    gpus = machine(number)
    before = list(gpus.states)
    with caplog.at_level("INFO", logger="letKD.run"):
        restore_random_states(states, device)
    assert gpus.states == before
    assert [record.getMessage()[:5] for record in caplog.records] == ["note:"] * (device == GPU)


def test_a_gpu_that_is_gone_leaves_the_other_generators(machine):
    machine(1)
    states = random_states()
    drawn = random.random(), torch.rand(3)
    machine(0)
    restore_random_states(states, CPU)
    assert random.random() == drawn[0] and torch.equal(torch.rand(3), drawn[1])


@pytest.mark.parametrize(("size", "restored"), [(2, 6), (3, 5)], ids=["as many", "more"])
def test_processes_take_their_own_or_that_of_the_first(size, restored, machine, monkeypatch):
    gpus = machine(1)
    states = random_states()
    of_rank = [{"torch": states["torch"], "cuda": torch.tensor([n], dtype=torch.uint8)} for n in (5, 6)]
    states |= {"cuda": [of_rank[0]["cuda"]], "ranks": of_rank}
    monkeypatch.setattr("engine.checkpoints.member", lambda: Member(1, size))
    restore_random_states(states, GPU)
    assert gpus.states[0].tolist() == [restored]
    monkeypatch.setattr("engine.checkpoints.member", lambda: ALONE)
    restore_random_states(states, GPU)
    assert gpus.states[0].tolist() == [5]
