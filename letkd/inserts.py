"""Layers behind modules of any network, by forward hooks, also where torch.fx traces it.

Hooks keep the network as it is: its state dict keeps the names of the published checkpoints. They are objects, not
closures, so that a deep copy or a pickle of a network carries its KD layers.

Two things a tracer must be told. The names of the inputs: torch.fx takes them from the code of `forward`, which
`with_forward_of` writes. And the layers: torch.fx runs no hook of a module that it does not look into, which is every
module of torch.nn but Sequential. `Inserted.call` puts them behind such a module too. In the traced graph a layer is a
call of the layer itself, so that it has its parameters, its modes and its precision there.

Threads may share a network with layers: what a call gathers is in a context variable, of which each thread has its own.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy, Tracer
from torch.utils import _pytree as pytree

from letkd.taps import submodule

CALL = {
    Parameter.POSITIONAL_ONLY: "{0}",
    Parameter.POSITIONAL_OR_KEYWORD: "{0}",
    Parameter.VAR_POSITIONAL: "*{0}",
    Parameter.KEYWORD_ONLY: "{0}={0}",
    Parameter.VAR_KEYWORD: "**{0}",
}


@dataclass(frozen=True)
class _Call:
    """A call of a network with layers that wants more than what the network returns.

    Args:
        of: the layers that are meant; `outer` may be a call that this one is inside of.
        scores: by layer, where they are wanted.
        traced: the layers that have come into a graph of torch.fx.
        has_gradients: so that layers inside have them too.
    """

    of: "Inserted"
    outer: "_Call | None"
    scores: dict[str, Tensor] | None = None
    traced: set[str] = field(default_factory=set)
    has_gradients: bool = field(default_factory=torch.is_grad_enabled)


_CALL: ContextVar[_Call | None] = ContextVar("call of a network with layers", default=None)


def key_of(name: str) -> str:
    """The name of a layer in a `ModuleDict`, which takes no dots."""
    return name.replace(".", "/")


class Inserted:
    """Layers that stand behind modules of a network.

    Args:
        layers: by `key_of` their names; called with what the module returned and `with_scores`, they return what takes
            its place, and scores.
        paths: module path of the network behind which each stands, by name.
    """

    def __init__(self, network: nn.Module, layers: nn.ModuleDict, paths: Mapping[str, str]):
        self.layers = layers
        self.paths = dict(paths)
        self._hooks = {name: _Insert(self, name) for name in paths}
        for path in self.paths.values():  # all of them exist before one is changed
            submodule(network, path)
        self._place(network)

    def call(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What the network returns.

        Raises:
            ValueError: a layer does not come into the graph that is traced.
        """
        self._place(network)
        tracer = next((leaf.tracer for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Proxy)), None)
        if tracer is None:
            return network(*args, **kwargs)
        with _hooks_of_leaves(tracer), self._gathering() as call:
            output = network(*args, **kwargs)
        for name, path in self.paths.items():
            if name not in call.traced:
                raise ValueError(
                    f"the KD layer {name!r} is not traced: {path!r} is inside a module that the tracer takes as a whole"
                )
        return output

    def call_with_scores(
        self, network: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Tensor]]:
        """What the network returns, and the scores of the layers by name.

        Raises:
            ValueError: a layer is called several times, or without gradients where the call has some.
        """
        self._place(network)
        with self._gathering(scores={}) as call:
            return network(*args, **kwargs), call.scores

    @contextmanager
    def _gathering(self, scores: dict[str, Tensor] | None = None) -> Iterator[_Call]:
        call = _Call(self, _CALL.get(), scores)
        token = _CALL.set(call)
        try:
            yield call
        finally:
            _CALL.reset(token)

    def current_call(self) -> _Call | None:
        """The call of this network that is going on in this thread, if it gathers anything."""
        call = _CALL.get()
        while call is not None and call.of is not self:
            call = call.outer
        return call

    def _place(self, network: nn.Module) -> None:
        """Put the hooks that are nowhere where they belong: at first, and when a module was replaced since."""
        for name, hook in self._hooks.items():
            place = submodule(network, self.paths[name])
            if hook in place._forward_hooks.values():
                continue
            if not any(hook in module._forward_hooks.values() for module in network.modules()):  # fusing moves them
                place.register_forward_hook(hook)


class _Insert:
    def __init__(self, inserted: Inserted, name: str):
        self.inserted = inserted
        self.name = name

    @property
    def layer(self) -> nn.Module:
        return self.inserted.layers[key_of(self.name)]

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor | Proxy) -> Tensor | Proxy:
        call = self.inserted.current_call()
        if isinstance(output, Proxy):
            if call is not None:
                call.traced.add(self.name)
            return self._traced(output)
        if call is None or call.scores is None:
            return self.layer(output, with_scores=False)[0]
        if self.name in call.scores:
            raise ValueError(
                f"the module before the KD layer {self.name!r} runs several times; choose one that runs once"
            )
        if call.has_gradients and not torch.is_grad_enabled():
            raise ValueError(
                f"the KD layer {self.name!r} runs without gradients, which its scores need: call "
                "torch.utils.checkpoint with use_reentrant=False, and no module with a layer behind it under no_grad"
            )
        changed, call.scores[self.name] = self.layer(output, with_scores=True)
        return changed

    def _traced(self, output: Proxy) -> Proxy:
        try:
            path = output.tracer.path_of_module(self.layer)
        except NameError:
            raise ValueError(
                f"the network has the KD layer {self.name!r}, and is no part of what is traced: trace the student"
            ) from None
        return output.tracer.create_proxy("call_module", path, (output,), {"with_scores": False})[0]


def has_layers(network: nn.Module) -> bool:
    """Whether there are layers behind modules of the network."""
    return any(isinstance(hook, _Insert) for module in network.modules() for hook in module._forward_hooks.values())


@contextmanager
def _hooks_of_leaves(tracer: Tracer) -> Iterator[None]:
    """Within the block the tracer runs the hooks that insert layers, also of modules that it does not look into."""
    call_module = tracer.call_module

    def call(module: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        hooks = [hook for hook in module._forward_hooks.values() if isinstance(hook, _Insert)]
        if not hooks or not tracer.is_leaf_module(module, path := tracer.path_of_module(module)):
            return call_module(module, forward, args, kwargs)
        # Its `forward`: a call of the module would run the hooks, and so the layer twice, as long as it has them.
        output = tracer.create_proxy("get_attr", path, (), {}).forward(*args, **kwargs)
        for hook in hooks:
            output = hook(module, args, output)
        return output

    tracer.call_module = call
    try:
        yield
    finally:
        tracer.call_module = call_module


def with_forward_of(network: nn.Module, cls: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose `forward` has the signature of the network's and passes all inputs to `_call`.

    torch.fx reads the names of inputs from the code of the class, and torch.export the signature. So each network needs
    a class, as each `torch.fx.GraphModule` does.
    """
    signature = inspect.signature(network.forward)
    parameters = list(signature.parameters.values())
    plain = [
        parameter.replace(annotation=Parameter.empty, default=Parameter.empty if _is_needed(parameter) else None)
        for parameter in parameters
    ]
    head = Signature([Parameter("self", Parameter.POSITIONAL_ONLY), *plain])
    inputs = ", ".join(CALL[parameter.kind].format(parameter.name) for parameter in parameters)
    code: dict[str, Any] = {}
    exec(f"def forward{head}: return self._call({inputs})", code)
    forward = code["forward"]
    given = [parameter for parameter in parameters if not _is_needed(parameter)]
    forward.__defaults__ = tuple(p.default for p in given if p.kind != Parameter.KEYWORD_ONLY) or None
    forward.__kwdefaults__ = {p.name: p.default for p in given if p.kind == Parameter.KEYWORD_ONLY} or None
    forward.__annotations__ = dict(getattr(network.forward, "__annotations__", {}))
    forward.__doc__ = "What the network returns."
    return type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__, "__doc__": cls.__doc__})


def _is_needed(parameter: Parameter) -> bool:
    return parameter.default is Parameter.empty
