"""Real bundles behind a real server, asked by a stock client, held against PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http

from models.zoo import ZOO
from pipeline.train import load_module
from serving.launch import Server, serve
from tests.conftest import Release


@pytest.fixture(scope="module")
def server(releases: dict[str, Release]) -> Iterator[Server]:
    folders = [release.bundle.folder for release in releases.values()]
    with serve(folders, port=0, grpc_port=0) as running:
        yield running


@pytest.mark.parametrize("transport", ["http", "grpc"])
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_a_stock_client_agrees_with_pytorch(
    server: Server, releases: dict[str, Release], transport: str, name: str, rows: int
) -> None:
    release = releases[name]
    image = release.job.dataset.test.inputs["image"][:rows]
    client: Any
    if transport == "http":
        triton, client = triton_http, triton_http.InferenceServerClient(server.http[7:])
        outputs = [
            triton.InferRequestedOutput(n, binary_data=True) for n in release_outputs(release)
        ]
    else:
        triton, client = triton_grpc, triton_grpc.InferenceServerClient(server.grpc)
        outputs = [triton.InferRequestedOutput(n) for n in release_outputs(release)]
    try:
        assert client.is_model_ready(name)
        request = triton.InferInput("image", list(image.shape), "FP32")
        request.set_data_from_numpy(image)
        answer = client.infer(name, [request], outputs=outputs)
    finally:
        client.close()
    module = load_module(release.job.recipe, release.trained).double()
    with torch.inference_mode():
        exact = module(image=torch.from_numpy(image).double())
    for output, limit in release.certificate.limits.items():
        got = answer.as_numpy(output)
        error = np.abs(got - exact[output].numpy()).max() / limit.scale
        assert error <= limit.limit


def release_outputs(release: Release) -> list[str]:
    return [spec.name for spec in release.model.signature.outputs]


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
