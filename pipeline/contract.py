"""The shape contract: what each place says of every tensor and every axis, in one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from models.signature import Axis, Signature
from pipeline.values import OnnxModel, Promise

# By input: its min, opt and max shape.
Profile = Mapping[str, Mapping[str, Sequence[int]]]


def contract(
    model: OnnxModel, declared: Mapping[str, str], profiles: Sequence[Profile] | None = None
) -> tuple[Promise, ...]:
    """A row for each tensor's shape and for each axis's sizes.

    `declared` is each tensor as the engine declares it; empty where it did not run. The service
    validates and describes requests by the signature's JSON schema, whose bounds are read back
    here; `profiles` are a compiled engine's, else what a compiler would be told.
    """
    signature = model.signature
    declared = {n: model.spelled.get(n, {}).get(text, text) for n, text in declared.items()}
    rows = [
        Promise(
            what=f"tensor {spec.name}",
            signature=spec.declared(),
            exporter=None,
            graph=model.declared.get(spec.name, "no such tensor"),
            engine=declared.get(spec.name, "no such tensor") if declared else None,
            profile=None,
            service=None,
        )
        for spec in signature.inputs + signature.outputs
    ]
    for name, axis in signature.axes.items():
        exported = (model.ranges or {}).get(name)
        rows.append(
            Promise(
                what=f"axis {name}",
                signature=_range(axis.min, axis.max),
                exporter=_range(*exported) if exported else None,
                graph=None,
                engine=None,
                profile=_same(_profiled(signature, axis, profiles or [signature.profile()])),
                service=_same(_validated(signature, axis)),
            )
        )
    return tuple(rows)


def disagreements(rows: tuple[Promise, ...]) -> Iterator[str]:
    """One line for each row in which somebody says something else than the signature."""
    for row in rows:
        said = row.model_dump(exclude={"what", "signature"})
        for who, text in said.items():
            if text not in (None, row.signature):
                yield f"declared: {row.what}: {who} says {text}, the signature {row.signature}"


def _profiled(signature: Signature, axis: Axis, profiles: Sequence[Profile]) -> Iterator[str]:
    """Of each input with the axis, the sizes that the widest profile admits."""
    for spec in signature.inputs:
        for place, size in enumerate(spec.shape):
            if size == axis:
                ranges = [
                    [p[spec.name][bound][place] for bound in ("min", "max")] for p in profiles
                ]
                yield _range(*max(ranges, key=lambda sizes: sizes[1] - sizes[0]))


def _validated(signature: Signature, axis: Axis) -> Iterator[str]:
    schema = signature.json_schema()["properties"]
    for spec in signature.inputs:
        level = schema[spec.name]
        for size in spec.shape:
            if size == axis:
                yield _range(level["minItems"], level["maxItems"])
            level = level["items"]


def _same(said: Iterator[str]) -> str:
    return " and ".join(dict.fromkeys(said))


def _range(low: int, high: int) -> str:
    return f"{low} to {high}"
