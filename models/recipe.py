"""A recipe: everything that makes one architecture trainable, exportable and servable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from models.codec import Codec
from models.errors import BadSetting
from models.recurrence import state_names
from models.signature import Arrays, Signature, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models.datasets import Dataset

Kind = Literal["classification", "segmentation", "sequence", "generative", "detection", "control"]
Tensors = dict[str, "Tensor"]


Optimizer = Literal["sgd", "momentum", "adam", "adamw", "adadelta", "adagrad", "rmsprop"]
Schedule = Literal["constant", "step", "cosine", "one-cycle", "plateau"]


class Training(BaseModel):
    """How a recipe is trained; each field is a setting.

    What the names mean stands in `models.optimization` and `models.augment`. 0 turns off
    `weight_decay`, `clip_norm` (the largest norm of the whole gradient), `patience` (epochs
    without a better validation metric, after which training stops) and each augmentation of the
    training batches, which is drawn up to the setting: `rotate` in degrees, `shift` and `scale` as
    shares of the picture, `noise` as a standard deviation in the input's units. `flip` mirrors half
    of the pictures along each axis, `elastic` bends them by displacements of that standard
    deviation in pixels, and `crop` cuts squares of that side out of them; targets that are maps,
    or the picture that is wanted of one, move along. `repeat` is how often an epoch shows each row.

    `momentum` is that of the optimizer of this name, and of adam and adamw the decay of the mean
    gradient.

    `carry` makes the rows a text that is read from row to row: the state after one goes into the
    next, and gradients end between them (truncated back-propagation through time).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 5
    batch_size: Annotated[int, Field(ge=1, le=1 << 20)] = 128
    optimizer: Optimizer = "adam"
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    schedule: Schedule = "constant"
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    clip_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    patience: Annotated[int, Field(ge=0)] = 0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    shift: Annotated[float, Field(ge=0, le=1)] = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    flip: bool = False
    elastic: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    crop: Annotated[int, Field(ge=0, le=1 << 14)] = 0
    repeat: Annotated[int, Field(ge=1, le=1 << 16)] = 1
    carry: bool = False
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of the served module that is an engine of its own, such as a decoder.

    `take(module)` gives the piece, which shares the weights; its named inputs are the data's or
    outputs of the parts before it.
    """

    take: Callable[[nn.Module], nn.Module]
    signature: Callable[..., Signature]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One architecture and its task.

    `network`, `served`, `data` and `signature` are callables; the keyword parameters that they
    declare with a default are settings of the recipe, set together by name. So `image=64` reaches
    the data, the network and the signature at once.

    - `network(**settings)` is the architecture, `served(network, **settings)` what is exported:
      a module from named tensors to a dictionary of named tensors. It is also what is trained, so
      training and serving cannot disagree about preprocessing.
    - `data[name](**settings)` gives a `Dataset` with separate train, validation and test rows.
    - `loss(outputs, targets, **settings)` is a scalar, `evaluate(outputs, targets)` the metrics
      over a split.
    - `per_row(outputs, targets)` is what of each row `evaluate` is given as its outputs, such as
      counts, where the outputs themselves are too large to keep.
    - `forward(module, inputs, targets, **settings)` is what loss and evaluation see of a batch, in
      training and in evaluation mode, where that is other or more than what is served.
    - `collect(module, memory, epoch, **settings)` makes the training rows of an epoch, for a model
      that gathers its own: (memory, inputs, targets). The memory, named tensors and empty at first,
      comes back in the next epoch.
    - `gradients(module, inputs, targets)` fills the parameters' gradients by a rule of its own and
      gives the loss; without it, back-propagation of `loss` does.
    - `prepare(module, inputs, targets)` runs once on the training rows, for their statistics.
    - `parts` are engines of the same bundle beside the whole, from left to right.
    - `calibrate(codec, outputs, targets)` completes the codec by what the trained module answers to
      the validation rows, such as a threshold.
    - `exhibits(module, inputs, targets)` are pictures to look at, made of test rows: by title,
      [rows, columns, channels, height, width] in [0, 1]. The first row of the first one is kept of
      every epoch.
    - `floor[name]` is the least test value of `metric` on that data, or the greatest where
      `direction` is "min"; missing it fails the run, and None asks for nothing. `training[name]` is
      how it is trained there.
    - `presets[name]` are settings on that data, beneath those that are set by hand. The declared
      defaults are the published size; a preset makes it trainable on less.
    - `baseline(dataset)` gives test metrics of a reference model, to stand beside the recipe's.
    - `remarks(dataset, metrics)` are sentences about this data that a person has to be told.
    - `drift` is the greatest share of its answers that an engine of lower precision may change.
    - `deviations` name what differs from the paper.
    """

    name: str
    kind: Kind
    title: str
    paper: str
    network: Callable[..., nn.Module]
    served: Callable[..., nn.Module] = lambda network: network
    signature: Callable[..., Signature]
    data: Mapping[str, Callable[..., Dataset]]
    loss: Callable[..., Tensor]
    evaluate: Callable[[Arrays, Arrays], dict[str, float]]
    metric: str
    direction: Literal["max", "min"] = "max"
    floor: Mapping[str, float | None]
    training: Mapping[str, Training]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    per_row: Callable[[Arrays, Arrays], Arrays] = lambda outputs, targets: outputs
    forward: Callable[..., Tensors] = lambda module, inputs, targets: module(**inputs)
    collect: Callable[..., tuple[Tensors, Tensors, Tensors]] | None = None
    gradients: Callable[[nn.Module, Tensors, Tensors], Tensor] | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)
    calibrate: Callable[[Codec, Arrays, Arrays], Codec] | None = None
    exhibits: Callable[[nn.Module, Tensors, Tensors], Tensors] = lambda module, inputs, targets: {}
    codec: Callable[..., Codec] = lambda dataset: Codec()
    prepare: Callable[[nn.Module, Tensors, Tensors], None] = lambda module, inputs, targets: None
    baseline: Callable[[Dataset], dict[str, float]] = lambda dataset: {}
    remarks: Callable[[Dataset, dict[str, float]], tuple[str, ...]] = lambda dataset, metrics: ()
    exporter: Literal["dynamo", "torchscript"] = "dynamo"
    drift: float = 0.01
    deviations: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """The recipe with other settings, each validated.

        Raises `BadSetting` naming the setting, what it got and what it may be.
        """
        own = _keywords(self)
        fields: dict[str, Any] = {**own, "floor": (_Floor, "none")}
        for name, info in Training.model_fields.items():
            fields[name] = (info.annotation, info)
        for name in changes:
            if name not in fields:
                raise BadSetting(
                    f"recipe {self.name!r} has no setting {name!r}",
                    expected="one of " + ", ".join(sorted(fields)),
                )
        model = create_model(
            "Settings", __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields
        )
        try:
            values = model.model_validate(dict(changes)).model_dump(include=set(changes))
        except ValidationError as error:
            first = error.errors()[0]
            raise BadSetting(
                f"setting {first['loc'][0]!r} of recipe {self.name!r} is refused",
                got=repr(first["input"]),
                expected=first["msg"].removeprefix("Input should be "),
            ) from error
        floor = self.floor
        if "floor" in values:
            least = values.pop("floor")
            floor = dict.fromkeys(self.data, None if least == "none" else least)
        training = {n: values.pop(n) for n in list(values) if n in Training.model_fields}
        changed = replace(
            self,
            training={n: t.model_copy(update=training) for n, t in self.training.items()},
            settings={**self.settings, **values},
            floor=floor,
        )
        changed._check_augmentation(training)
        return changed

    def on(self, data: str) -> Recipe:
        """The recipe as it is trained on that data: its presets beneath what was set by hand.

        Raises `BadSetting` with the names of the data sets there are.
        """
        if data not in self.data:
            raise BadSetting(
                f"recipe {self.name!r} has no data {data!r}", expected=" or ".join(self.data)
            )
        return replace(self, settings={**self.presets.get(data, {}), **self.settings})

    def all_settings(self, data: str) -> dict[str, Any]:
        """Every setting with its value on that data: the training ones, then the recipe's own."""
        return self.training[data].model_dump() | self.published() | dict(self.on(data).settings)

    def published(self) -> dict[str, Any]:
        """The recipe's own settings as declared: the size that was published."""
        return {name: default for name, (_, default) in _keywords(self).items()}

    def build(self) -> nn.Module:
        """A fresh served module with initial weights, drawn from torch's current generator."""
        network = self._call(self.network)
        return self._call(self.served, network)

    def make_signature(self) -> Signature:
        return self._call(self.signature)

    def make_part(self, name: str) -> Signature:
        return self._call(self.parts[name].signature)

    def make_codec(self, dataset: Dataset) -> Codec:
        return self._call(self.codec, dataset)

    def load(self, data: str) -> Dataset:
        """The data set of that name. Raises `BadSetting` with the names there are."""
        recipe = self.on(data)
        return recipe._call(self.data[data])

    def check_fits(self, dataset: Dataset, data: str) -> None:
        """Raise `BadSetting` when the settings ask for other inputs or classes than the data has.

        Axes that vary are not compared: rows are cut or continued to their sizes.
        """
        signature = self.make_signature()
        for spec in self._data_inputs():
            rows = dataset.test.inputs[spec.name]
            wanted = spec.shape[1:] if signature.batch else spec.shape
            sizes = zip(rows.shape[1:], wanted, strict=False)
            if rows.ndim != 1 + len(wanted) or any(isinstance(w, int) and s != w for s, w in sizes):
                raise BadSetting(
                    f"the settings of recipe {self.name!r} do not fit the data {dataset.name!r} at "
                    f"input {spec.name!r}",
                    got=str(spec),
                    expected=f"rows of {list(rows.shape[1:])}",
                )
            crop = self.training[data].crop
            if spec.picture and crop:
                has_map = map_of(dataset.train.targets, dataset.train.inputs[spec.name].shape)
                if has_map is None or crop > min(rows.shape[2:]):
                    raise BadSetting(
                        f"setting 'crop' of recipe {self.name!r} does not fit the data "
                        f"{dataset.name!r}",
                        got=crop,
                        expected=f"at most {min(rows.shape[2:])}" if has_map else "0: no maps",
                    )
        codec = self.make_codec(dataset)
        answers = ((codec.scores, -1, len(codec.classes)), (codec.pixels, 1, len(codec.classes)))
        if codec.generation:
            answers = ((codec.generation.logits, -1, codec.generation.tokens.ids),)
        for output, axis, classes in answers:
            said = signature.output(output).shape[axis] if output else classes
            if said != classes:
                raise BadSetting(
                    f"the settings of recipe {self.name!r} do not fit the data {dataset.name!r}",
                    got=f"{said} classes",
                    expected=classes,
                )

    def rank(self, metrics: Mapping[str, float]) -> float:
        """What the recipe's own metric is worth: the more the better, whatever its direction."""
        value = metrics[self.metric]
        return value if self.direction == "max" else -value

    def answer(self, module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensors:
        return self._call(self.forward, module, inputs, targets)

    def gather(
        self, module: nn.Module, memory: Tensors, epoch: int
    ) -> tuple[Tensors, Tensors, Tensors]:
        return self._call(self.collect, module, memory, epoch)  # pyright: ignore[reportArgumentType]

    def compute_loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        return self._call(self.loss, outputs, targets)

    def _check_augmentation(self, changed: Mapping[str, Any]) -> None:
        """Refuse an augmentation that no input of this recipe can take."""
        inputs = self._data_inputs()
        recurrence = self.make_signature().recurrence
        can = {
            "carry": recurrence is not None and all(s.position is None for s in recurrence.states),
            "noise": any(spec.floating for spec in inputs),
            **dict.fromkeys(
                ("rotate", "shift", "scale", "flip", "elastic", "crop"),
                any(spec.picture for spec in inputs),
            ),
        }
        for name, possible in can.items():
            if changed.get(name) and not possible:
                raise BadSetting(
                    f"setting {name!r} of recipe {self.name!r} is refused",
                    got=changed[name],
                    expected="0, for the recipe has no input that it could change"
                    if name != "carry"
                    else "false, for the recipe has no state that could be carried from row to row",
                )

    def _data_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that a data set holds: all but those that carry state."""
        signature = self.make_signature()
        carried = state_names(signature)
        return tuple(spec for spec in signature.inputs if spec.name not in carried)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        names = _parameters(function)
        return function(*args, **{n: v for n, v in self.settings.items() if n in names})


def map_of(targets: Mapping[str, Any], picture: Sequence[int]) -> str | None:
    """The target that says something of every pixel of pictures of that shape, if there is one."""
    names = (n for n, t in targets.items() if tuple(t.shape[1:]) == tuple(picture[2:]))
    return next(names, None)


_Floor = Annotated[float, Field(allow_inf_nan=False)] | Literal["none"]


@cache  # the loss is called at every step of a training, and inspection costs as much as a layer
def _parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """The keyword parameters with defaults of a callable: name to (type, default)."""
    init = function.__init__ if inspect.isclass(function) else function
    try:
        hints = get_type_hints(init, include_extras=True)
    except NameError:  # names that exist for the type checker only
        hints = {}
    return {
        name: (hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def _keywords(recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    parts = (
        recipe.network, recipe.served, recipe.signature, recipe.loss, recipe.codec, recipe.forward,
        *([recipe.collect] if recipe.collect else []),
        *(part.signature for part in recipe.parts.values()),
        *recipe.data.values(),
    )  # fmt: skip
    for function in parts:
        for name, declared in _parameters(function).items():
            if found.setdefault(name, declared)[1] != declared[1]:
                raise BadSetting(
                    f"recipe {recipe.name!r} declares setting {name!r} with two defaults",
                    got=f"{found[name][1]!r} and {declared[1]!r}",
                )
    clash = found.keys() & {*Training.model_fields, "floor"}
    if clash:
        raise BadSetting(f"recipe {recipe.name!r} declares {sorted(clash)}, which are training's")
    return found
