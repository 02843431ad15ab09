"""A trained student as plain inference: what the KD layers and BatchNorm learned, folded into convolutions.

    KD layer    a = ReLU(A * f / |f| + b)        A_k = g_k scale_t T_k / |T_k|,  b = beta - g mean,
                                                 g = gamma / sqrt(var + eps)
                f + (V * a) / |a|                V_c = alpha scale_v V_c / |V_c|
    BatchNorm   g (w * x + c) + b = (g w) * x + (g c + b)

`*` is a convolution (1x1 in a KD layer), norms are over channels. Only a BatchNorm that alone reads a convolution can
be folded: those that precede one, as in wide ResNets, stay. Folding is computed in float64.
"""

import copy
from collections.abc import Sequence
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from architectures import InputConfig
from architectures.input import resize_rows
from distillation.signals import plain_kd_layer
from letkd import KDLayer, Student
from letkd.layer import ChannelsLastKDLayer, TokenKDLayer
from letkd.maps import as_map

COSINE_EPS = 1e-12  # of the layer in training
TRACED_BATCH = 2  # one image would be traced as a fixed size
OPERATORS = torch.ops.aten


class Resizing(nn.Module):
    """Square images (B, C, H, H) in 0..1 to (B, C, h, h), as `architectures.Input` resizes them, by two products.

        R I R^T        R (h, H): what resizing does to a column

    Every runtime has products, and few torch's antialiasing.
    """

    def __init__(self, seen: InputConfig):
        super().__init__()
        columns = torch.eye(seen.crop_size)[None, None]
        self.is_cut = seen.interpolation == "bicubic"  # which goes beyond the values of its pixels
        self.register_buffer("rows", resize_rows(columns, seen.image_size, seen.interpolation)[0, 0])

    def forward(self, images: Tensor) -> Tensor:
        resized = self.rows @ images @ self.rows.mT
        return resized.clamp(0, 1) if self.is_cut else resized


class Deployed(nn.Module):
    """Images (B, 3, H, W), RGB in 0..1, to logits (B, N): a network with the normalisation of its training before it.

    Args:
        network: takes normalised images.
        mean, std: per channel, for values in 0..1.
        memory_format: that the network runs in.
        resizing: what brings the images to the size of the network; None where they have it.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        memory_format: torch.memory_format,
        resizing: Resizing | None = None,
    ):
        super().__init__()
        self.network = network
        self.memory_format = memory_format
        self.resizing = resizing
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.resizing is not None:
            images = self.resizing(images)
        return self.network(((images - self.mean) / self.std).contiguous(memory_format=self.memory_format))


class DeployedKDLayer(nn.Module):
    """What a KD layer does to a map (B, C, H, W), without its scores: two 1x1 convolutions."""

    def __init__(self, layer: KDLayer):
        super().__init__()
        num_templates, channels = layer.scores.templates.shape
        self.templates = nn.Conv2d(channels, num_templates, kernel_size=1)
        self.semantic_vectors = nn.Conv2d(num_templates, channels, kernel_size=1, bias=False)
        bn = layer.bn
        gain = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        semantic_vectors = layer.alpha * _scaled(layer.semantic_vectors, layer.scale)
        _fill(self.templates.weight, gain[:, None] * _scaled(layer.scores.templates, layer.scores.scale))
        _fill(self.templates.bias, bn.bias - gain * bn.running_mean)
        _fill(self.semantic_vectors.weight, semantic_vectors)

    def forward(self, features: Tensor) -> Tensor:
        weights = F.relu(self.templates(features / _norms(features)))
        return features + self.semantic_vectors(weights) / _norms(weights)


class DeployedInside(nn.Module):
    """What a KD layer does to what a module returned: a map, a map with channels last, or tokens."""

    def __init__(self, layer: KDLayer | TokenKDLayer):
        super().__init__()
        self.prefix = layer.prefix if isinstance(layer, TokenKDLayer) else None
        self.channels_last = isinstance(layer, ChannelsLastKDLayer)
        self.layer = DeployedKDLayer(plain_kd_layer(layer))

    def forward(self, output: Tensor) -> Tensor:
        map_BCHW = self.layer(as_map(output, self.prefix, self.channels_last))
        if self.channels_last:
            return map_BCHW.permute(0, 2, 3, 1)
        if self.prefix is not None:
            return torch.cat((output[:, : self.prefix], map_BCHW.flatten(2).mT), dim=1)
        return map_BCHW


def deploy(
    student: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    backbone: nn.Module | None = None,
    memory_format: torch.memory_format = torch.channels_last,
    resizing: Resizing | None = None,
) -> Deployed:
    """A copy of a student for inference alone, on the CPU, in eval mode.

    Args:
        student: a network, or one with KD layers named after the taps of its backbone.
        backbone: a network like the student's backbone, to put its weights in, where there are KD layers.
        memory_format: what torch runs convolutions in; channels_last is the faster one.
        resizing: as of `Deployed`.
    """
    if not isinstance(student, Student):
        network = copy.deepcopy(student)
    else:
        assert backbone is not None, "a copy of the student's own would have hooks with KD layers"
        network = backbone
        network.load_state_dict(student.backbone.state_dict())
        paths = student.paths
        # The innermost first: a layer that takes a place changes the paths of the modules inside it.
        for name in sorted(paths, key=lambda name: paths[name].count("."), reverse=True):
            layer = student.layers[name]
            if plain_kd_layer(layer).alpha != 0:
                place = network.get_submodule(paths[name])
                network.set_submodule(paths[name], nn.Sequential(place, DeployedInside(layer)))
    # Weights stay contiguous: torch.export.save warns of others, and converting them costs little.
    deployed = Deployed(network, mean, std, memory_format, resizing)
    return deployed.to("cpu", memory_format=torch.contiguous_format).eval()


def trace(network: nn.Module, image_size: int) -> ExportedProgram:
    """The graph of a network in eval mode, images (B, 3, image_size, image_size) to logits for any B, folded.

    Nothing in it tells of the machine or the code it was made with.
    """
    graph = _export(network, image_size).module()
    fold_batch_norms(graph)
    program = _export(graph, image_size)
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    return program


def fold_batch_norms(graph: GraphModule) -> int:
    """Fold every BatchNorm that alone reads a convolution into its weights; returns how many.

    Args:
        graph: of `torch.export`, in eval mode; its parameters are changed.
    """
    num_folded = 0
    for norm in graph.graph.find_nodes(op="call_function", target=OPERATORS.batch_norm.default):
        convolution, scale, shift, mean, variance = norm.args[:5]
        eps = norm.args[7]
        if convolution.target is not OPERATORS.conv2d.default:
            continue
        inputs, weight, *others = convolution.args  # bias, stride, ... as far as they are not the default
        bias = others[0] if others else None
        if mean is None or len(convolution.users) > 1 or len(weight.users) > 1:
            continue
        if any(node is not None and node.op != "get_attr" for node in (weight, bias)):  # computed of others
            continue
        values = [_value(graph, node) for node in (weight, bias, mean, variance, scale, shift)]
        folded = nn.utils.fuse_conv_bn_weights(*values[:4], eps, *values[4:])
        path = weight.target.rpartition(".")[0]
        place = graph.get_submodule(path)
        place.weight, place.bias = (nn.Parameter(value.float()) for value in folded)
        with graph.graph.inserting_before(convolution):
            convolution.args = (inputs, weight, graph.graph.get_attr(f"{path}.bias"), *others[1:])
        norm.replace_all_uses_with(convolution)
        graph.graph.erase_node(norm)
        num_folded += 1
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return num_folded


@torch.no_grad()
def _export(network: nn.Module, image_size: int) -> ExportedProgram:
    images = torch.zeros(TRACED_BATCH, 3, image_size, image_size)
    return torch.export.export(network, (images,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False)


def _value(graph: GraphModule, node: Node | None) -> Tensor | None:
    return None if node is None else attrgetter(node.target)(graph).detach().double()


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Rows of length `scale`, float64."""
    return scale.double() * F.normalize(weight.double(), dim=1, eps=COSINE_EPS)


def _norms(x: Tensor) -> Tensor:
    """Lengths over channels, (B, 1, H, W)."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(COSINE_EPS)


@torch.no_grad()
def _fill(parameter: nn.Parameter, values: Tensor) -> None:
    parameter.copy_(values.reshape(parameter.shape))
