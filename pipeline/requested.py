"""Requested against effective: device and precision of every node, and whether TF32 was on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.backends import Target
from pipeline.values import Engine

# What an engine of each precision may compute floats in, besides that precision.
_BESIDES = {"fp32": "fp32", "tf32": "fp32", "int8": "fp32", "fp8": "fp32"}
# Of activations that are never negative, a library may hold eight bits without a sign.
_ROUNDED = {"int8": {"int8", "uint8"}, "fp8": {"fp8"}}
# What computes nothing, in the words of TensorRT and of ONNX: values pass in whatever they are.
_CARRYING = (
    "cast", "concat", "concatenation", "conditional_input", "conditional_output", "constant",
    "expand", "flatten", "gather", "gatherelements", "identity", "iterator", "memcpyfromhost",
    "memcpytohost", "reshape", "shuffle", "slice", "split", "squeeze", "tile", "transpose",
    "unsqueeze",
)  # fmt: skip


def other_than_requested(wanted: Target, engine: Engine, facts: Mapping[str, Any]) -> Iterator[str]:
    """What ran on another device or in another precision than the target's, a line for each.

    `facts` are `Backend.effective`'s. A node's `onnx` names the nodes of the graph that it was made
    of, none where a parser or compiler put it in; without it, its own name counts. In fp16 and
    bf16 only nodes of `engine.kept` may compute in fp32. Nodes marked `shape` see no values and
    may run on the CPU.
    """
    nodes = facts["nodes"]
    if not nodes:
        yield "effective: no node was seen to run"
    if nodes and not any(node.get("onnx", [node["name"]]) for node in nodes):
        yield "effective: nothing that ran says which node of the graph it was made of"
    for node in nodes:
        where = f"effective: node {node['name']!r} ({node['operator']})"
        if node["device"] != wanted.device and not node.get("shape"):
            yield f"{where} ran on {node['device']}, requested {wanted.device}"
        floats = {p for p in node["precision"].split("+") if p.startswith(("fp", "bf"))}
        besides = _BESIDES.get(wanted.precision) or ("fp32" if _spared(node, engine) else "")
        if floats - {wanted.precision, besides}:
            yield f"{where} ran in {node['precision']}, requested {wanted.precision}"
    if wanted.precision in _ROUNDED:
        yield from _not_rounded(wanted, engine, nodes)
    if facts["tf32"] != (wanted.precision == "tf32"):
        yield f"effective: TF32 is {'on' if facts['tf32'] else 'off'}, requested {wanted.precision}"


def _spared(node: Mapping[str, Any], engine: Engine) -> bool:
    """Whether a node may be in fp32: named as kept, fused with such a one, or not of the graph."""
    made_of = node.get("onnx", [node["name"]])
    carries = node["operator"].lower() in _CARRYING
    return carries or not made_of or not set(engine.kept).isdisjoint(made_of)


def _not_rounded(wanted: Target, engine: Engine, nodes: list[Mapping[str, Any]]) -> Iterator[str]:
    """Nodes that were to be computed in eight bits and of which no layer was."""
    eight = _ROUNDED[wanted.precision]
    rounded = [node for node in nodes if eight.intersection(node["precision"].split("+"))]
    if not rounded:
        yield f"effective: no node ran in {wanted.precision}, requested {wanted.precision}"
    seen, done = ({n for node in some for n in node.get("onnx", ())} for some in (nodes, rounded))
    for name in engine.lowered:
        if name in seen - done:
            yield f"effective: node {name!r} did not run in {wanted.precision}, as requested"
