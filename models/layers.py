"""The layer table of a network: output shapes, parameters, multiplications, receptive fields.

Measured on one real forward call, so it holds for any module, functional calls included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from models.recipe import Recipe
from models.signature import BATCH


@dataclass(frozen=True)
class Layer:
    """One leaf module as it was called, without the batch axis."""

    name: str
    type: str
    output_shape: list[int]
    parameters: int
    multiplications: int
    # Side of the window of the input that one output sees; None where inputs have no space.
    receptive_field: int | None


@dataclass(frozen=True)
class Block:
    """A module made of others as it was called: their sums, without the batch axis."""

    name: str
    type: str
    output_shape: list[int]
    parameters: int
    multiplications: int


@dataclass(frozen=True)
class Inspection:
    """A network's layers and blocks in the order of their calls, and totals.

    `parameters` are those of what is served; `training_only_parameters` those of modules that
    exist for training, auxiliary heads say, and are never called in evaluation.
    """

    name: str
    parameters: int
    training_only_parameters: int
    multiplications: int
    layers: list[Layer]
    blocks: list[Block]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect(recipe: Recipe) -> Inspection:
    """Call the recipe's served module on zeros of one row and write down what each layer does.

    Multiplications: of a convolution H_out W_out C_out F_h F_w C_in / groups, of a dense layer
    inputs times outputs at each position, of a matrix product its inner size times its output.
    """
    signature = recipe.make_signature()
    with torch.random.fork_rng(devices=[]):
        module = recipe.build().eval()
    sizes = {name: axis.opt for name, axis in signature.axes.items()} | {BATCH: 1}
    inputs = {
        spec.name: torch.zeros(spec.at(sizes), dtype=getattr(torch, spec.dtype))
        for spec in signature.inputs
    }
    tracer = _Tracer()
    for tensor in inputs.values():
        if tensor.ndim > 2:  # [batch, channels, *space]
            tracer.fields[id(tensor)] = _Field(1, 1)
    hooks = [
        hook
        for name, part in module.named_modules()
        if not isinstance(part, nn.Identity)
        for hook in tracer.watch(name.removeprefix("network."), part)
    ]
    with torch.inference_mode(), tracer:
        module(**inputs)
    for hook in hooks:
        hook.remove()
    everything = sum(p.numel() for p in module.parameters())
    served = sum(p.numel() for p in module.parameters() if id(p) in tracer.used)
    return Inspection(
        name=recipe.name,
        parameters=served,
        training_only_parameters=everything - served,
        multiplications=tracer.multiplications,
        layers=tracer.layers,
        blocks=[block for block in tracer.blocks if block],
    )


@dataclass(frozen=True)
class _Field:
    size: int  # side, in input pixels, that one element sees
    jump: int  # distance, in input pixels, between neighbours


class _Tracer(TorchFunctionMode):
    """Follows every torch function: counts multiplications, and carries receptive fields along."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[int, _Field] = {}
        self.layers: list[Layer] = []
        self.blocks: list[Block | None] = []  # None until the call is over
        self.multiplications = 0
        self.used: set[int] = set()  # parameters that a call had to do with
        self._counted = 0
        self._seen: set[int] = set()  # parameters of a layer that is called again count once
        self._kept: list[Tensor] = []  # a freed tensor's id would be given to another

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        self.used |= {id(a) for a in _flatten((args, kwargs)) if isinstance(a, nn.Parameter)}
        if func in _RECURRENT:  # every weight once a step; the products of gates are not counted
            steps = args[0].shape[1]  # of rows that stand first
            self.multiplications += steps * sum(w.numel() for w in args[2] if w.ndim == 2)
        if isinstance(result, Tensor):
            self.multiplications += _multiplications(func, args, kwargs, result)
            field = self._field(func, args, kwargs, result)
            if field and id(result) not in self.fields:
                self.fields[id(result)] = field
                self._kept.append(result)
        return result

    def watch(self, name: str, module: nn.Module) -> list[RemovableHandle]:
        """Note each call of a leaf as a layer and of a composite as a block, but for the root."""
        if not list(module.children()):
            return [module.register_forward_hook(self._leave_layer(name))]
        if name in ("", "network"):
            return []
        enter, leave = self._around_block(name)
        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def _leave_layer(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            first = _first(output)
            field = self.fields.get(id(first))
            own = [p for p in module.parameters() if id(p) not in self._seen]
            self._seen |= {id(p) for p in own}
            self.used |= {id(p) for p in own}
            self.layers.append(
                Layer(
                    name=name,
                    type=type(module).__name__,
                    output_shape=list(first.shape[1:]),
                    parameters=sum(p.numel() for p in own),
                    multiplications=self.multiplications - self._counted,
                    receptive_field=field.size if field else None,
                )
            )
            self._counted = self.multiplications

        return hook

    def _around_block(
        self, name: str
    ) -> tuple[Callable[[nn.Module, Any], None], Callable[[nn.Module, Any, Any], None]]:
        entered: list[tuple[int, int]] = []  # place in the list, multiplications before

        def enter(_module: nn.Module, _inputs: Any) -> None:
            entered.append((len(self.blocks), self.multiplications))
            self.blocks.append(None)

        def leave(module: nn.Module, _inputs: Any, output: Any) -> None:
            place, before = entered.pop()
            self.used |= {id(p) for p in module.parameters(recurse=False)}
            self.blocks[place] = Block(
                name=name,
                type=type(module).__name__,
                output_shape=list(_first(output).shape[1:]),
                parameters=sum(p.numel() for p in module.parameters() if id(p) in self.used),
                multiplications=self.multiplications - before,
            )

        return enter, leave

    def _field(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Tensor,
    ) -> _Field | None:
        tensors = [a for a in _flatten((args, kwargs)) if isinstance(a, Tensor)]
        seen = [(self.fields[id(t)], t) for t in tensors if id(t) in self.fields]
        if not seen:
            return None
        widest, source = max(seen, key=lambda pair: pair[0].size)
        if source.ndim > 2 and (result.ndim == 2 or func in _ADAPTIVE):
            # Flattened or pooled over all of space: everything is seen.
            whole = widest.size + (max(source.shape[2:]) - 1) * widest.jump
            return _Field(whole, widest.jump)
        window = _window(func, args, kwargs)
        if window is None:
            return widest
        kernel, stride = window
        return _Field(widest.size + (kernel - 1) * widest.jump, widest.jump * stride)


def _first(output: Any) -> Tensor:
    return next(leaf for leaf in _flatten(output) if isinstance(leaf, Tensor))


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _flatten(part)]
    return [value]


_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (
    functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
)  # fmt: skip
_PRODUCTS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, torch.mm)
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_ADAPTIVE = (functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d)
_POOLINGS = (functional.max_pool2d, functional.avg_pool2d, torch.max_pool2d)


def _multiplications(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
) -> int:
    def argument(place: int, name: str) -> Any:
        return args[place] if len(args) > place else kwargs[name]

    rows = result.shape[0]
    if func in _CONVOLUTIONS:
        weight = argument(1, "weight")  # [out, in / groups, *kernel]
        return result.numel() // rows * weight[0].numel()
    if func in _TRANSPOSED:
        weight = argument(1, "weight")  # [in, out / groups, *kernel]
        return argument(0, "input").numel() // rows * weight[0].numel()
    if func is functional.linear:
        return result.numel() // rows * argument(1, "weight").shape[1]
    if func in _PRODUCTS:
        return result.numel() // rows * argument(0, "input").shape[-1]
    return 0


def _window(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int, int] | None:
    """Kernel side and stride of a sliding window, the larger of both axes; None for other calls."""

    def argument(place: int, name: str, default: Any) -> Any:
        value = args[place] if len(args) > place else kwargs.get(name, default)
        return default if value is None else value

    if func in _CONVOLUTIONS:
        kernel = argument(1, "weight", None).shape[2:]
        dilation = _side(argument(5, "dilation", 1))
        return (max(kernel) - 1) * dilation + 1, _side(argument(3, "stride", 1))
    if func in _POOLINGS:
        kernel = argument(1, "kernel_size", 1)
        return _side(kernel), _side(argument(2, "stride", kernel) or kernel)
    return None


def _side(value: Any) -> int:
    return int(max(value) if isinstance(value, list | tuple) else value)
