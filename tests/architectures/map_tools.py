"""What a method for maps reads, as the docstring of `Place` asks for it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from architectures import Place


def with_random_statistics(network: nn.Module) -> nn.Module:
    """In eval mode, with BatchNorms that move, scale and turn."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


@torch.no_grad()
def maps_of(network: nn.Module, images: Tensor, places: Sequence[Place]) -> list[Tensor]:
    """The maps of the places in one forward pass."""
    maps: dict[int, Tensor] = {}
    handles = []
    for index, place in enumerate(places):
        module = network.get_submodule(place.path)

        def keep(_module, inputs, output=None, index=index, place=place):
            tensor = inputs[0] if place.is_input else output
            maps[index] = tensor.clone() if place.changed_later else tensor

        if place.is_input:
            module.inplace = False
        handles.append((module.register_forward_pre_hook if place.is_input else module.register_forward_hook)(keep))
    network(images)
    for handle in handles:
        handle.remove()
    return [maps[index] for index in range(len(places))]
