"""Peers' servers of one model: the program that one writes first with each, in its environment."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.launch import end
from serving.ports import free_port

PEERS = Path(__file__).parents[2] / "build" / "peers"
PATIENCE = 120.0

_SESSION = """
import os
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options)
def infer(image):
    return session.run(["probabilities"], {"image": np.asarray(image, np.float32)})[0]
"""
_FASTAPI = (
    _SESSION
    + """
import fastapi
from pydantic import BaseModel
class Request(BaseModel):
    image: list
app = fastapi.FastAPI()
@app.post("/predict")
async def predict(request: Request):
    return {"probabilities": infer(request.image).tolist()}
import uvicorn
uvicorn.run(app, host="127.0.0.1", port=int(os.environ["HTTP"]), access_log=False)
"""
)
_BENTOML = (
    _SESSION
    + """
import bentoml
@bentoml.service
class Lenet:
    @bentoml.api
    def predict(self, image: np.ndarray) -> np.ndarray:
        return infer(image)
"""
)
_LITSERVE = (
    _SESSION
    + """
import litserve
class Lenet(litserve.LitAPI):
    def setup(self, device):
        pass
    def decode_request(self, request):
        return request["image"]
    def predict(self, image):
        return infer(image)
    def encode_response(self, answer):
        return {"probabilities": answer.tolist()}
if __name__ == "__main__":
    server = litserve.LitServer(Lenet(), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(os.environ["HTTP"]), generate_client_file=False)
"""
)
_MLSERVER = (
    _SESSION
    + """
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
class Lenet(MLModel):
    async def load(self):
        return True
    async def predict(self, payload):
        answer = infer(NumpyCodec.decode_input(payload.inputs[0]))
        output = NumpyCodec.encode_output("probabilities", answer)
        return InferenceResponse(model_name=self.name, outputs=[output])
"""
)


@dataclass(frozen=True)
class Peer:
    """What is installed, the program and how it is started; it is told its ports by environment."""

    name: str
    packages: tuple[str, ...]
    program: str
    command: tuple[str, ...]
    files: Callable[[int, int], dict[str, str]] = lambda http, rpc: {}


def _mlserver_files(http: int, rpc: int) -> dict[str, str]:
    ports = {"http_port": http, "grpc_port": rpc, "metrics_port": free_port("127.0.0.1")}
    return {
        # In one process: its pool of workers, the default, ended here before it had loaded a model.
        "settings.json": json.dumps(
            {"host": "127.0.0.1", "debug": False, "parallel_workers": 0, **ports}
        ),
        "model-settings.json": json.dumps({"name": "peer", "implementation": "program.Lenet"}),
    }


ALL_PEERS = (
    Peer(
        "fastapi", ("fastapi", "uvicorn[standard]", "onnxruntime"), _FASTAPI,
        ("python", "program.py"),
    ),
    Peer(
        "bentoml", ("bentoml", "onnxruntime"), _BENTOML,
        ("bentoml", "serve", "program:Lenet", "--host", "127.0.0.1", "--port", "$HTTP", "--quiet"),
    ),
    Peer("litserve", ("litserve", "onnxruntime"), _LITSERVE, ("python", "program.py")),
    Peer(
        "mlserver", ("mlserver", "onnxruntime"), _MLSERVER, ("mlserver", "start", "."),
        _mlserver_files,
    ),
)  # fmt: skip


def install(peer: Peer) -> Path:
    """The folder of the peer's programs, in an environment as pip makes it."""
    folder = PEERS / peer.name
    done = folder / "installed.json"
    if not done.is_file():
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *peer.packages]
        subprocess.run(pip, check=True, capture_output=True, text=True)
        done.write_text(json.dumps(peer.packages))
    return folder / "bin"


def version(peer: Peer, binaries: Path) -> str:
    wanted = [package.partition("[")[0] for package in peer.packages]
    code = f"from importlib.metadata import version as v; print(*map(v, {wanted!r}))"
    said = subprocess.run(
        [str(binaries / "python"), "-c", code], check=True, capture_output=True, text=True
    )
    return ", ".join(f"{n} {v}" for n, v in zip(wanted, said.stdout.split(), strict=True))


@contextmanager
def started(
    peer: Peer, binaries: Path, model: Path, http: int, rpc: int
) -> Iterator[Callable[[], str]]:
    """The peer's server on these ports; a call says what it said last, or nothing while it runs."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "program.py").write_text(peer.program)
        for name, text in peer.files(http, rpc).items():
            (Path(scratch) / name).write_text(text)
        first, *others = peer.command
        log = Path(scratch) / "said"
        with log.open("w") as said:
            process = subprocess.Popen(
                [str(binaries / first), *(str(http) if o == "$HTTP" else o for o in others)],
                cwd=scratch, stdout=said, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
                env={
                    **os.environ, "MODEL": str(model), "HTTP": str(http), "BENTOML_HOME": scratch,
                    "BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1",
                    "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
                },
            )  # fmt: skip

            def ended() -> str:
                if process.poll() is None:
                    return ""
                return (log.read_text().strip().splitlines() or ["nothing"])[-1]

            try:
                yield ended
            finally:
                end(process)
