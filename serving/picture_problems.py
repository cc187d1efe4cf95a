"""Whether a codec of drawn pictures fits its graphs, before anybody is served by it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from models.codec import Anomaly, Codec, Pictures
from models.signature import Signature, TensorSpec

Problem = tuple[str, object, object]
WHOLE = ""


def picture_problem(
    codec: Codec, whole: Signature, parts: Mapping[str, Signature]
) -> Problem | None:
    """What the codec does that the graphs cannot, got and expected; None where all fits."""
    graphs = {WHOLE: whole, **parts}
    problem = _noise_problem(codec, graphs) or _block_problem(codec, graphs)
    if codec.pictures:
        problem = problem or _decoder_problem(codec, codec.pictures, graphs)
        problem = problem or _encoder_problem(codec, codec.pictures, graphs)
        problem = problem or _reconstruction_problem(codec, codec.pictures, whole)
    if codec.anomaly:
        problem = problem or _anomaly_problem(codec, codec.anomaly, whole)
    return problem


def _noise_problem(codec: Codec, graphs: Mapping[str, Signature]) -> Problem | None:
    for name in codec.noise:
        found = [spec for graph in graphs.values() for spec in graph.inputs if spec.name == name]
        unfit = next((spec for spec in found if not _rows(spec)), None)
        if not found or unfit:
            return f"draws the noise {name!r}", unfit, "an input of floats [batch, ...]"
    return None


def _block_problem(codec: Codec, graphs: Mapping[str, Signature]) -> Problem | None:
    for graph in graphs.values() if codec.block else ():
        if graph.batch is None or not graph.batch.min <= (codec.block or 0) <= graph.batch.max:
            return "asks in blocks", codec.block, graph.batch or "a batch axis"
    return None


def _decoder_problem(
    codec: Codec, pictures: Pictures, graphs: Mapping[str, Signature]
) -> Problem | None:
    graph = graphs.get(pictures.decoder)
    if graph is None:
        return f"draws with the part {pictures.decoder!r}", None, sorted(graphs)
    latent, drawn = _find(graph.inputs, pictures.latent), _find(graph.outputs, pictures.drawn)
    if latent is None or len(latent.shape) != 2 or not _rows(latent):
        return f"reads codes into {pictures.latent!r}", latent, "an input of floats [batch, n]"
    if drawn is None or not _drawable(drawn):
        return f"draws {pictures.drawn!r}", drawn, "an output of floats [batch, 1 or 3, h, w]"
    if problem := _other_inputs(graph, {pictures.latent, pictures.label}):
        return problem
    if pictures.label is None:
        return None
    label, last = _find(graph.inputs, pictures.label), len(codec.classes) - 1
    if label is None or label.dtype != "int64" or len(label.shape) != 1 or label.high != last:
        wanted = f"an input of int64 [batch] from 0 to {last}, as there are classes"
        return f"reads classes into {pictures.label!r}", label, wanted
    return None


def _encoder_problem(
    codec: Codec, pictures: Pictures, graphs: Mapping[str, Signature]
) -> Problem | None:
    if pictures.encoder is None and pictures.code is None:
        return None
    if pictures.encoder is None or pictures.code is None:
        return "names an encoder or a code alone", None, "both"
    graph = graphs.get(pictures.encoder)
    if graph is None:
        return f"encodes with the part {pictures.encoder!r}", None, sorted(graphs)
    code, latent = _find(graph.outputs, pictures.code), graphs[pictures.decoder].input
    wanted = latent(pictures.latent)
    if code is None or (code.dtype, code.shape[1:]) != (wanted.dtype, wanted.shape[1:]):
        return f"reads codes off {pictures.code!r}", code, f"an output like {wanted}"
    return _reads_pictures(codec, graph)


def _reconstruction_problem(codec: Codec, pictures: Pictures, whole: Signature) -> Problem | None:
    name = pictures.reconstruction
    if name is None:
        return None
    if problem := _reads_pictures(codec, whole):
        return problem
    spec = _find(whole.outputs, name)
    wanted = whole.input(codec.image.name) if codec.image else None
    if spec is None or wanted is None or spec.shape != wanted.shape:
        return f"reconstructs {name!r}", spec, f"an output like {wanted}"
    return None


def _anomaly_problem(codec: Codec, anomaly: Anomaly, whole: Signature) -> Problem | None:
    spec = _find(whole.outputs, anomaly.error)
    if spec is None or not spec.floating or spec.shape[1:] not in ((), (1,)):
        return f"tells anomalies by {anomaly.error!r}", spec, "an output of one number per row"
    if not math.isfinite(anomaly.threshold):
        return "has a threshold", anomaly.threshold, "a finite number"
    return _reads_pictures(codec, whole)


def _reads_pictures(codec: Codec, graph: Signature) -> Problem | None:
    """Refuse a graph that takes other than the codec's pictures and noise."""
    image = codec.image
    spec = _find(graph.inputs, image.name) if image else None
    sizes = (image.channels, image.height, image.width) if image else ()
    if image is None or spec is None or spec.shape[1:] != sizes or not _drawable(spec):
        return "reads pictures", spec, f"an input of floats [batch, {str(sizes)[1:-1]}]"
    return _other_inputs(graph, {image.name, *codec.noise})


def _other_inputs(graph: Signature, known: Collection[str | None]) -> Problem | None:
    names = [spec.name for spec in graph.inputs]
    if any(name not in known for name in names):
        return "leaves inputs out", names, sorted(filter(None, known))
    return None


def _find(specs: tuple[TensorSpec, ...], name: str) -> TensorSpec | None:
    return next((spec for spec in specs if spec.name == name), None)


def _rows(spec: TensorSpec) -> bool:
    """Whether it is floats of a fixed size for each row."""
    fixed = all(isinstance(size, int) for size in spec.shape[1:])
    return spec.floating and len(spec.axes) == 1 and fixed


def _drawable(spec: TensorSpec) -> bool:
    return spec.picture and _rows(spec) and spec.shape[1] in (1, 3)
