"""The losses against reference values, and the command that compares them: what makes it fail, and other shapes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.methods import core

SMALL = Path(__file__).parent / "methods"
WHOLE = Path(__file__).parents[3] / "shared" / "reference" / "methods"
METHODS = core.list_adapters()
KINDS = ("loss", "grad", "out", "after")


def small(method: str) -> Path:
    return SMALL / f"{method}.npz"


def save(path: Path, arrays: dict[str, Tensor]) -> Path:
    np.savez(path, **{name: array.numpy() for name, array in arrays.items()})
    return path


def test_every_method_has_an_adapter_and_a_copy():
    assert sorted(path.stem for path in SMALL.glob("*.npz")) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_the_copy(method, capsys):
    assert core.main([str(small(method))]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_the_whole_file(method, capsys):
    path = WHOLE / f"{method}.npz"
    if not path.is_file():
        pytest.skip(f"the whole reference values of {method} are not at hand")
    assert core.main([str(path)]) == 0, capsys.readouterr().out


# --- other shapes and other numbers -----------------------------------------------------------------------------------


class Recorded(core.Golden):
    """Arrays whose results are replaced by what the losses make of the rest."""

    def _compare(self, name: str, value: Tensor, *, rtol: float, atol: float | None = None) -> None:
        self.arrays[name] = value.detach().clone()
        super()._compare(name, value, rtol=rtol, atol=atol)


def three_quarters(count: int) -> int:
    return count * 3 // 4 if count > 4 else count


def smaller(name: str, array: Tensor) -> Tensor:
    """With three quarters of samples, classes and channels, and other numbers; grids and constants stay."""
    if not name.startswith(("input/", "param/")) or not array.ndim:
        return array
    array = array[tuple(slice(three_quarters(size)) for size in array.shape[:2])]
    if not array.dtype.is_floating_point:
        return array % three_quarters(int(array.max()) + 1)  # labels
    return array + 0.1 * torch.rand_like(array) if name.startswith("input/") else array.contiguous()


@pytest.mark.parametrize("method", METHODS)
def test_takes_other_shapes_and_seeds(method, tmp_path, capsys):
    torch.manual_seed(0)
    arrays = core.load_arrays(small(method))
    golden = Recorded({name: smaller(name, array) for name, array in arrays.items()})
    core.find_adapter(method).compare(golden)
    assert golden.rows and not golden.unknown
    path = save(tmp_path / f"{method}_seed1.npz", golden.arrays)
    assert core.main([str(path)]) == 0, capsys.readouterr().out
    changed = [name for name in golden.rows if golden.arrays[name].shape != arrays[name].shape]
    assert changed and all(not torch.equal(golden.arrays[n], arrays[n]) for n in golden.rows if n.startswith("loss/"))


# --- what makes the command fail --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_sees_results_that_are_one_percent_off(method, tmp_path, capsys):
    arrays = core.load_arrays(small(method))
    compared = core.check(small(method)).rows
    largest: dict[str, str] = {}
    for kind in KINDS:
        names = [n for n in compared if n.startswith(f"{kind}/") and arrays[n].dtype.is_floating_point]
        if names:
            largest[kind] = max(names, key=lambda name: arrays[name].abs().max())
    wrong = {name: 1.01 * arrays[name] for name in largest.values()}
    path = save(tmp_path / f"{method}.npz", arrays | wrong)
    golden = core.check(path)
    assert {name for name, row in golden.rows.items() if not row.agrees} == set(wrong)
    assert core.main([str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("DIFFERS") for line in lines) == len(wrong)
    assert lines[-1].endswith(f"{len(compared) - len(wrong)} of {len(golden.results)}")


def without_results(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: array for name, array in arrays.items() if not name.startswith(KINDS)}


def with_nan(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    return arrays | {"input/student_logits": torch.full((8, 10), torch.nan)}


FAULTS = {
    "unknown_loss": (lambda arrays: arrays | {"loss/other": torch.ones(())}, "unknown array 'loss/other'"),
    "unknown_gradient": (
        lambda arrays: arrays | {"grad/kd/teacher_logits": torch.ones(8, 10)},
        "unknown array 'grad/kd/teacher_logits'",
    ),
    "unknown_input": (lambda arrays: arrays | {"input/other": torch.ones(2)}, "unknown array 'input/other'"),
    "unknown_kind": (lambda arrays: arrays | {"other": torch.ones(2)}, "unknown array 'other'"),
    "missing_input": (
        lambda arrays: {name: array for name, array in arrays.items() if name != "input/teacher_logits"},
        "there is no array 'input/teacher_logits'; there are input/",
    ),
    "other_shape": (lambda arrays: arrays | {"loss/kd": torch.ones(2)}, "loss/kd has the shape (2,), and ours ()"),
    "not_finite": (with_nan, "DIFFERS"),
    "nothing_to_compare": (without_results, "nothing was compared"),
    "nothing_at_all": (lambda arrays: {}, "there is no array 'input/student_logits'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_fails_it(fault: str, tmp_path, capsys):
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    change, message = FAULTS[fault]
    path = save(tmp_path / "kd.npz", change(core.load_arrays(small("kd"))))
    assert core.main([str(small("dkd")), str(path)]) == 1
    out = capsys.readouterr().out
    assert message in out and "Traceback" not in out


def test_files_that_are_none(tmp_path, capsys):
    (tmp_path / "kd.npz").write_bytes(b"no arrays")
    save(tmp_path / "other.npz", {"loss/other": torch.ones(())})
    np.save(tmp_path / "kd.npy", np.ones(3))
    for name, message in {
        "kd.npz": "it is no file of arrays",
        "kd.npy": "it is no file of arrays",
        "other.npz": f"unknown method 'other'; known: {METHODS[0]}, {METHODS[1]},",
        "missing.npz": "unknown method 'missing'",
        "dkd.npz": "there is no such file",
    }.items():
        assert core.main([str(tmp_path / name)]) == 1
        out = capsys.readouterr().out.splitlines()
        assert out[0].startswith("error: ") and message in out[0] and out[-1].endswith("0 of 0")
    assert core.main([]) == 1


def test_where_the_reference_is_not_finite_ours_must_be(tmp_path):
    arrays = core.load_arrays(small("kd"))
    gradient = arrays["grad/kd/student_logits"].clone()
    gradient[0] = torch.nan
    some = core.check(save(tmp_path / "kd.npz", arrays | {"grad/kd/student_logits": gradient}))
    assert some.rows["grad/kd/student_logits"].agrees and not some.unknown
    gradient[:] = torch.inf
    none = core.check(save(tmp_path / "kd.npz", arrays | {"grad/kd/student_logits": gradient}))
    assert "not finite" in none.left_out["grad/kd/student_logits"] and not none.unknown


def test_names_of_sdd_tell_temperature_and_factor_by_family(tmp_path):
    arrays = core.load_arrays(small("sdd"))
    values = {name: arrays[f"loss/{name}"] for name in ("sd_kd_M12", "sd_dkd_beta8_M12", "sd_nkd_T4_gamma8_M12")}
    right = {"sd_kd_T4_M12": values["sd_kd_M12"], "sd_dkd_T4_beta8_M12": values["sd_dkd_beta8_M12"]}
    wrong = {"sd_kd_T2_M12": values["sd_kd_M12"], "sd_nkd_T4_gamma10_M12": values["sd_nkd_T4_gamma8_M12"]}
    path = save(tmp_path / "sdd.npz", arrays | {f"loss/{name}": value for name, value in (right | wrong).items()})
    golden = core.check(path)
    assert {name for name, row in golden.rows.items() if not row.agrees} == {f"loss/{name}" for name in wrong}
