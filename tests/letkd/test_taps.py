"""Reading maps of a frozen teacher."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from letkd import FrozenTaps
from letkd.taps import recording


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), nn.Flatten(), nn.Linear(6 * 16, 4)
    )


def test_frozen_taps_return_the_maps_and_never_train():
    teacher = network()
    taps = FrozenTaps(teacher, {"late": "0", "early": "0.0"}).train()
    images = torch.randn(2, 3, 6, 6)
    maps = taps(images)
    torch.testing.assert_close(maps["late"], teacher[0](images))
    torch.testing.assert_close(maps["early"], teacher[0][0](images))
    assert not any(module.training for module in taps.modules())
    assert not any(p.requires_grad for p in taps.parameters())


class Overwrites(nn.Module):
    """With a head behind `forward_features`, as timm's networks have it, that overwrites the features."""

    def __init__(self):
        super().__init__()
        self.features, self.late = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.features(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.late(self.forward_features(images).relu_()).mean(dim=(2, 3))


def test_a_map_is_what_its_module_returned_wherever_it_is():
    teacher, images = Overwrites(), torch.randn(2, 3, 6, 6)
    maps = FrozenTaps(teacher, {"features": "features", "late": "late"})(images)
    features = teacher.features(images)
    assert (features < 0).any() and torch.equal(maps["features"], features)
    torch.testing.assert_close(maps["late"], teacher.late(features.relu()))


class Forgiving(nn.Module):
    """Counts what it has run, and goes on where a part of it fails."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(4))
        self.ran: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        for number, part in enumerate(self.parts):
            self.ran.append(number)
            try:
                images = part(images)
            except Exception:
                continue
        return images


def test_a_network_is_left_behind_the_last_of_the_maps_that_are_read():
    teacher, images = Forgiving(), torch.randn(2, 3, 6, 6)
    with recording(teacher, ["parts.2", "parts.0"], leave_early=True) as outputs:
        teacher(images)
    assert teacher.ran == [0, 1, 2]
    whole = FrozenTaps(teacher, {"early": "parts.0", "late": "parts.2"})(images)
    assert teacher.ran == [0, 1, 2, 0, 1, 2, 3]
    for name, path in (("early", "parts.0"), ("late", "parts.2")):
        assert len(outputs[path]) == 1 and torch.equal(outputs[path][0], whole[name])
    teacher(images)
    assert teacher.ran[-4:] == [0, 1, 2, 3]


def test_threads_that_share_a_teacher_have_maps_of_their_own():
    """Each is inside a call while the others run all of theirs."""
    meeting, teacher = threading.Barrier(3), network()

    def wait(*_: object) -> None:
        meeting.wait(timeout=30)

    teacher[0].register_forward_hook(wait)
    taps = FrozenTaps(teacher, {"late": "1", "early": "0.0"})
    batches = [torch.randn(number, 3, 6, 6) for number in (2, 3, 4)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(taps, batches))
    for maps, batch in zip(found, batches, strict=True):
        early = teacher[0][0](batch)
        torch.testing.assert_close(maps["early"], early)
        torch.testing.assert_close(maps["late"], teacher[0][2](teacher[0][1](early)).flatten(1))
