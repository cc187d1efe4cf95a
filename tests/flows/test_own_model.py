"""A model of somebody else's, with two inputs and two outputs, goes the whole way and is served."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.launch import serve
from tests.flows.conftest import Fucina

ROOT = Path(__file__).parents[2]


def example() -> str:
    """The module that README shows."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (module,) = [block for block in blocks if "RECIPE = Recipe(" in block]
    return module


def test_the_recipe_in_the_readme_runs_and_is_served(
    fucina: Fucina, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mymodule.py").write_text(example())
    done = fucina("run", "mymodule:RECIPE", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["certificate"]["passed"]
    assert row["metrics"][row["metric"]] >= row["floor"]
    bundle = tmp_path / row["bundle"]
    assert json.loads((bundle / "manifest.json").read_text())["name"] == row["name"]

    checked = fucina(
        "serve", "mymodule:RECIPE", "--check", "--port", "0", "--grpc-port", "0", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    (model,) = json.loads(checked.stdout)["models"]
    assert model["rest"]["answers"] == model["grpc"]["answers"] > 0

    report = fucina("report", "mymodule:RECIPE", "--no-latency", cwd=tmp_path)
    assert (tmp_path / report.stdout.strip()).is_file(), report.stderr

    # A stock client, against the module itself.
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "mymodule" not in sys.modules
    import torch
    from tritonclient import grpc as triton

    from flows.stages import Job, resumed
    from pipeline.train import load_module

    parts = resumed(Job("mymodule:RECIPE"), "package")
    assert parts.trained is not None
    module = load_module(Job("mymodule:RECIPE").recipe, parts.trained)
    random = np.random.default_rng(0)
    with serve([bundle], port=0, grpc_port=0) as server:
        client = triton.InferenceServerClient(server.grpc)
        metadata: Any = client.get_model_metadata(row["name"])
        arrays = {}
        wanted = []
        for spec in metadata.inputs:
            shape = [5 if size == -1 else size for size in spec.shape]
            arrays[spec.name] = random.normal(size=shape).astype(np.float32)
            wanted.append(triton.InferInput(spec.name, shape, spec.datatype))
            wanted[-1].set_data_from_numpy(arrays[spec.name])
        assert len(wanted) == 2
        assert len(metadata.outputs) == 2
        answer: Any = client.infer(row["name"], wanted)
        client.close()
    with torch.inference_mode():
        expected = module(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    assert parts.certificates
    for name, limit in parts.certificates[0].limits.items():
        error = np.abs(answer.as_numpy(name) - expected[name].numpy()).max()
        assert error <= 2 * limit.limit * max(limit.scale, float(expected[name].abs().max()))
