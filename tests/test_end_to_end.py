"""Real bundles behind a real server, asked by a stock client, held against PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http

from models.signature import Arrays
from models.zoo import ZOO
from pipeline.train import load_module
from serving.launch import Server, serve
from serving.tensors import DATATYPES
from tests.conftest import Release


@pytest.fixture(scope="module")
def server(releases: dict[str, Release]) -> Iterator[Server]:
    folders = [release.bundle.folder for release in releases.values()]
    with serve(folders, port=0, grpc_port=0) as running:
        yield running


@pytest.mark.parametrize("transport", ["http", "grpc"])
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("rows", [1, 5, "most"])
def test_a_stock_client_agrees_with_pytorch(
    server: Server, releases: dict[str, Release], transport: str, name: str, rows: int | str
) -> None:
    release = releases[name]
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


@pytest.mark.parametrize("name", ZOO)
def test_a_person_is_answered_in_the_words_of_the_codec(
    server: Server, releases: dict[str, Release], name: str
) -> None:
    release = releases[name]
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


def held_out(release: Release, rows: int | str) -> Arrays:
    """Real test rows, as many as the signature takes for `most`; other axes at their usual size."""
    signature = release.model.signature
    assert signature.batch is not None
    count = signature.batch.max if rows == "most" else int(rows)
    sizes = {axis.name: axis.opt for axis in signature.axes.values()} | {"batch": count}
    arrays = {}
    for spec in signature.inputs:
        array = release.job.dataset.test.inputs[spec.name]
        for axis, size in enumerate(spec.at(sizes)):
            array = array.take(range(size), axis=axis, mode="wrap")
        arrays[spec.name] = np.ascontiguousarray(array)
    return arrays


@torch.inference_mode()
def reference(release: Release, arrays: Arrays) -> Arrays:
    """What the fp64 module answers."""
    module = load_module(release.job.recipe, release.trained).double()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    wide = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    return {name: tensor.numpy() for name, tensor in module(**wide).items()}


def test_the_server_loaded_no_torch_no_onnx_no_prefect(server: Server) -> None:
    """Read from the memory maps of the server's processes: none of these libraries is mapped."""
    if not sys.platform.startswith("linux"):
        pytest.skip("memory maps are read from /proc")
    parent = psutil.Process(server.process.pid)
    mapped = set()
    for process in [parent, *parent.children(recursive=True)]:
        lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        mapped |= {line.split()[-1] for line in lines}
    libraries = {part for path in mapped for part in Path(path).parts}
    assert "onnxruntime" in libraries
    assert not libraries & {"torch", "onnx", "sklearn", "matplotlib"}
