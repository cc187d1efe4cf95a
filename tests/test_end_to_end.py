"""Real bundles behind a real server, asked by a stock client, held against PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http

from models.codec import END
from models.recurrence import start, state_names
from models.signature import Arrays
from models.zoo import ZOO
from pipeline.cases import GREEDY
from pipeline.train import load_module
from serving.ask import example
from serving.drawing import draw
from serving.launch import Server, serve
from serving.tensors import DATATYPES
from tests.conftest import Release, Releases

KINDS = list(dict.fromkeys(recipe.kind for recipe in ZOO.values()))


def of_kind(kind: str) -> list[str]:
    return [name for name, recipe in ZOO.items() if recipe.kind == kind]


@pytest.fixture(scope="module")
def servers(releases: Releases) -> Iterator[dict[str, Server]]:
    """A server for each kind, over all recipes of it.

    The last recipe is made first: another process may be making the others from the first one on.
    """
    folders = {name: releases[name].bundle.folder for name in reversed(ZOO)}
    with ExitStack() as running:
        yield {
            kind: running.enter_context(
                serve([folders[name] for name in of_kind(kind)], port=0, grpc_port=0)
            )
            for kind in KINDS
        }


@pytest.mark.parametrize("transport", ["http", "grpc"])
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("rows", [1, 5, "most"])
def test_a_stock_client_agrees_with_pytorch(
    servers: dict[str, Server],
    releases: Releases,
    transport: str,
    name: str,
    rows: int | str,
) -> None:
    release, server = releases[name], servers[ZOO[name].kind]
    arrays = held_out(release, rows)
    triton: Any = triton_http if transport == "http" else triton_grpc
    client = triton.InferenceServerClient(server.http[7:] if transport == "http" else server.grpc)
    binary = {"binary_data": True} if transport == "http" else {}
    specs = release.model.signature
    outputs = [triton.InferRequestedOutput(spec.name, **binary) for spec in specs.outputs]
    try:
        assert client.is_model_ready(name)
        inputs = []
        for spec in specs.inputs:
            array = arrays[spec.name]
            given = triton.InferInput(spec.name, list(array.shape), DATATYPES[spec.dtype])
            given.set_data_from_numpy(array)
            inputs.append(given)
        answer = client.infer(name, inputs, outputs=outputs)
    finally:
        client.close()
    exact = reference(release, arrays)
    for output, limit in release.certificate.limits.items():
        error = np.abs(answer.as_numpy(output) - exact[output]).max() / limit.scale
        assert error <= limit.limit


@pytest.mark.parametrize("name", of_kind("classification"))
def test_a_person_is_answered_in_the_words_of_the_codec(
    servers: dict[str, Server], releases: Releases, name: str
) -> None:
    release, server = releases[name], servers["classification"]
    arrays, codec = held_out(release, 3), release.bundle.codec
    question = {"model": name, "inputs": {n: array.tolist() for n, array in arrays.items()}}
    answer = httpx.post(f"{server.http}/predict", json=question, timeout=60)
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    exact = reference(release, arrays)
    if codec.values:
        values = [prediction["value"] for prediction in predictions]
        np.testing.assert_allclose(values, exact[codec.values][:, 0], rtol=1e-4)
        return
    if codec.scores:
        expected = exact[codec.scores].argmax(1)
    else:
        expected = (exact[str(codec.sign)][:, 0] > 0).astype(int)
    assert [p["class"] for p in predictions] == [codec.classes[index] for index in expected]


@pytest.mark.parametrize("name", of_kind("segmentation"))
def test_a_picture_of_any_size_is_segmented_as_by_pytorch(
    servers: dict[str, Server], releases: Releases, name: str
) -> None:
    """Larger than the largest tile, so it goes through tiles; PyTorch is asked the whole."""
    release = releases[name]
    tiled = release.bundle.codec.tiled
    assert tiled is not None
    pictures = release.job.dataset.test.inputs[tiled.name]
    largest = max(axis.max for axis in release.model.signature.axes.values())
    side = largest // pictures.shape[2] + 1
    whole = np.tile(pictures[:1], (1, 1, side, side))[:, :, : largest + 37, : largest + 5]
    question = {"model": name, "image": whole[0].tolist(), "probabilities": True}
    answer = httpx.post(f"{servers['segmentation'].http}/segment", json=question, timeout=60)
    assert answer.status_code == 200, answer.text
    said = np.array([*answer.json()["probabilities"].values()])
    exact = reference(release, {tiled.name: whole})[str(release.bundle.codec.pixels)][0]
    assert np.abs(said - exact).max() <= 1e-5
    np.testing.assert_array_equal(np.array(answer.json()["map"]), said.argmax(0))


@pytest.mark.parametrize("name", of_kind("sequence"))
def test_a_text_is_classified_or_written_as_by_pytorch(
    servers: dict[str, Server], releases: Releases, name: str
) -> None:
    release = releases[name]
    route, question = example(release.bundle)
    answer = httpx.post(f"{servers['sequence'].http}{route}", json=question, timeout=60)
    assert answer.status_code == 200, answer.text
    codec = release.bundle.codec
    if codec.generation is None:
        assert codec.text is not None
        tokens = codec.text.encode([question["text"]])
        exact = reference(release, {codec.text.name: tokens})[str(codec.scores)]
        assert answer.json()["predictions"][0]["class"] == codec.classes[exact[0].argmax()]
        return
    greedy = next(case for case in release.bundle.cases() if case.origin == GREEDY)
    ids = greedy.reference[codec.generation.tokens.name][0].tolist()
    ids = ids[: ids.index(END)] if END in ids else ids
    assert answer.json()["text"] == codec.generation.tokens.decode(ids[:40])


@pytest.mark.parametrize("name", of_kind("generative"))
def test_pictures_are_drawn_or_redrawn_as_by_pytorch(
    servers: dict[str, Server], releases: Releases, name: str
) -> None:
    release, codec = releases[name], releases[name].bundle.codec
    pictures = codec.pictures
    assert pictures is not None

    def ask(route: str, **question: Any) -> dict[str, Any]:
        question = {"model": name, **question}
        answer = httpx.post(f"{servers['generative'].http}{route}", json=question, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    drawing = release.bundle.parts.get(pictures.decoder, release.bundle)
    specs = {spec.name: spec for spec in drawing.manifest.signature.inputs}
    if pictures.latent in codec.noise:
        many = ask("/sample", n=11, seed=7)
        given = {pictures.latent: draw(7, 11, specs[pictures.latent])}
        if pictures.label:
            given[pictures.label] = np.array([codec.classes.index(c) for c in many["classes"]])
        exact = reference(release, given, pictures.decoder)[pictures.drawn]
        np.testing.assert_allclose(np.array(many["images"]), exact, atol=1e-5)
        np.testing.assert_array_equal(
            np.array(ask("/sample", n=1, seed=7)["images"][0]), np.array(many["images"][0])
        )
    if codec.image and pictures.reconstruction:
        arrays = held_out(release, 3)
        arrays |= {n: np.zeros_like(a) for n, a in arrays.items() if n in codec.noise}
        said = ask("/reconstruct", image=arrays[codec.image.name].tolist())
        exact = reference(release, arrays)[pictures.reconstruction]
        np.testing.assert_allclose(np.array(said["images"]), exact, atol=1e-5)
    if codec.anomaly and codec.image:
        arrays = held_out(release, 64)
        said = ask("/anomaly", image=arrays[codec.image.name].tolist())
        exact = reference(release, arrays)[codec.anomaly.error]
        errors = [one["error"] for one in said["pictures"]]
        np.testing.assert_allclose(errors, exact, rtol=1e-3)
        assert {one["anomalous"] for one in said["pictures"]} == {True, False}


@pytest.mark.parametrize("name", of_kind("control"))
def test_an_agent_acts_as_by_pytorch(
    servers: dict[str, Server], releases: Releases, name: str
) -> None:
    release = releases[name]
    actions = release.bundle.codec.actions
    assert actions is not None
    arrays = held_out(release, 9)
    question = {"model": name, "observation": arrays[actions.observation].tolist()}
    answer = httpx.post(f"{servers['control'].http}/act", json=question, timeout=60)
    assert answer.status_code == 200, answer.text
    said = answer.json()["actions"]
    values = np.array([[one["q_values"][a] for a in actions.names] for one in said])
    exact = reference(release, arrays)[actions.values]
    np.testing.assert_allclose(values, exact, rtol=1e-4, atol=1e-5)
    assert [one["action"] for one in said] == values.argmax(1).tolist()


def held_out(release: Release, rows: int | str) -> Arrays:
    """Real test rows, as many as the signature takes for `most`; other axes at their usual size."""
    signature = release.model.signature
    assert signature.batch is not None
    count = signature.batch.max if rows == "most" else min(int(rows), signature.batch.max)
    sizes = {axis.name: axis.opt for axis in signature.axes.values()} | {"batch": count}
    arrays = {}
    for spec in signature.inputs:
        if spec.name in state_names(signature):
            continue
        array = release.job.dataset.test.inputs[spec.name]
        for axis, size in enumerate(spec.at(sizes)):
            array = array.take(range(size), axis=axis, mode="wrap")
        arrays[spec.name] = np.ascontiguousarray(array)
    return arrays | start(signature, count)


@torch.inference_mode()
def reference(release: Release, arrays: Arrays, part: str = "") -> Arrays:
    """What the fp64 module, or a part of it, answers."""
    module = load_module(release.job.recipe, release.trained).double()
    if part:
        module = release.job.recipe.parts[part].take(module)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    wide = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    return {name: tensor.numpy() for name, tensor in module(**wide).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_loaded_no_torch_no_onnx_no_prefect(
    servers: dict[str, Server], kind: str
) -> None:
    """Read from the memory maps of the server's processes: none of these libraries is mapped."""
    if not sys.platform.startswith("linux"):
        pytest.skip("memory maps are read from /proc")
    parent = psutil.Process(servers[kind].process.pid)
    mapped = set()
    for process in [parent, *parent.children(recursive=True)]:
        lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        mapped |= {line.split()[-1] for line in lines}
    libraries = {part for path in mapped for part in Path(path).parts}
    assert "onnxruntime" in libraries
    assert not libraries & {"torch", "onnx", "sklearn", "matplotlib"}
