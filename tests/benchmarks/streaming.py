"""Streamed texts beside a plain PyTorch loop: python -m tests.benchmarks.streaming [NAME]

One trained language model, served by `serving.launch` and by the program that one writes first: a
FastAPI endpoint whose generator steps the eager module for its own request, state carried, in a
thread. Both are asked by the same clients for texts of the same length, in alternating rounds, each
server alone at work. Prints medians of the time to the first token and of tokens per second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastapi
import onnxruntime
import torch
import uvicorn
from fastapi.responses import StreamingResponse
from torch import nn

from flows.latency import machine
from flows.stages import Job
from models.codec import FIRST_CHARACTER
from models.recurrence import capacity, start
from pipeline.artifacts import load
from pipeline.bundle import Bundle, open_bundle
from pipeline.train import load_module
from pipeline.values import TRAINED_VALUE, TrainedModel
from serving.launch import serve
from serving.ports import free_port
from tests.conftest import Release, make_release

PROMPT = "the first of "
CLIENTS = (1, 8, 32)


@dataclass(frozen=True)
class Round:
    """Seconds to the first token of the median client, and tokens per second of all together."""

    first: float
    rate: float


def plain_app(module: nn.Module, bundle: Bundle) -> fastapi.FastAPI:
    """The obvious server: each request steps the eager module by itself."""
    signature, codec = bundle.manifest.signature, bundle.codec.generation
    assert codec is not None
    assert signature.recurrence is not None
    states = signature.recurrence.states
    room = capacity(signature)
    app = fastapi.FastAPI()

    def write(prompt: str, count: int, temperature: float) -> Iterator[str]:
        ids = codec.tokens.encode(prompt).tolist()
        carried = {n: torch.from_numpy(a) for n, a in start(signature, 1).items()}
        pending, position = ids, 0
        for _ in range(count):
            if room and position + len(pending) > room:
                pending, position = ids[-room // 2 :], 0
                carried = {n: torch.from_numpy(a) for n, a in start(signature, 1).items()}
            with torch.inference_mode():
                outputs = module(tokens=torch.tensor([pending]), **carried)
                end = position + len(pending)
                for state in states:
                    if state.position is None:
                        carried[state.input] = outputs[state.output]
                    else:
                        carried[state.input][:, :, position:end] = outputs[state.output]
                        carried[state.position] = torch.tensor([end])
                position = end
                likely = (outputs[codec.logits][0, -1, FIRST_CHARACTER:] / temperature).softmax(0)
                token = int(torch.multinomial(likely, 1)) + FIRST_CHARACTER
            pending = [token]
            ids.append(token)
            yield f"data: {json.dumps({'text': codec.tokens.decode([token])})}\n\n"

    @app.post("/generate")
    def generate(wanted: dict[str, Any]) -> StreamingResponse:
        text = write(wanted["prompt"], wanted["max_tokens"], wanted["temperature"])
        return StreamingResponse(text, media_type="text/event-stream")

    return app


def _serve_plain(job: Job, trained: Path, bundle: Path, port: int) -> None:
    torch.set_num_threads(1)
    module = load_module(job.recipe, load(TrainedModel, trained, TRAINED_VALUE))
    uvicorn.run(plain_app(module, open_bundle(bundle)), port=port, log_level="error")


@contextmanager
def plain_server(release: Release) -> Iterator[str]:
    """The address of the obvious server, in a process of its own."""
    port = free_port("127.0.0.1")
    process = multiprocessing.get_context("spawn").Process(
        target=_serve_plain,
        # A new job: what the other has cached cannot be sent.
        args=(replace(release.job), release.trained.folder, release.bundle.folder, port),
    )
    process.start()
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/docs", timeout=1).close()
                break
            except OSError:
                assert process.is_alive(), "the plain server ended"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


async def ask(address: str, tokens: int) -> tuple[float, int]:
    """Seconds to the first event of one text, and the number of its characters."""
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps({"prompt": PROMPT, "max_tokens": tokens, "temperature": 1.0}).encode()
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST /generate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    chunks = [await reader.readuntil(b"data: ")]
    first = time.perf_counter() - begun
    while chunk := await reader.read(65536):
        chunks.append(chunk)
    writer.close()
    answer = b"".join(chunks)
    assert b" 200 " in answer[:20], answer[:500]
    pieces = answer.split(b"data: ")[1:]
    return first, sum(len(json.loads(piece.partition(b"\n")[0])["text"]) for piece in pieces)


async def ask_all(address: str, clients: int, tokens: int) -> Round:
    """Every client asks for one text at the same moment."""
    begun = time.perf_counter()
    answers = await asyncio.gather(*(ask(address, tokens) for _ in range(clients)))
    seconds = time.perf_counter() - begun
    return Round(
        statistics.median(first for first, _ in answers),
        sum(count for _, count in answers) / seconds,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="lstm", help="a language model of the zoo")
    parser.add_argument("--set", nargs="*", default=[], metavar="K=V", help="settings of it")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a run folder to resume; none trains anew")
    options = parser.parse_args()
    changes: dict[str, Any] = {"epochs": 1, **dict(text.split("=", 1) for text in options.set)}
    with tempfile.TemporaryDirectory() as scratch:
        release = make_release(options.name, options.out or Path(scratch), **changes)
        print(
            f"{machine()}; torch {torch.__version__} with 1 thread, onnxruntime "
            f"{onnxruntime.__version__}; {options.name}, {release.trained.parameters:,} "
            f"parameters, texts of {options.tokens} tokens, medians of {options.rounds} rounds"
        )
        with (
            serve([release.bundle.folder], port=0, grpc_port=0) as ours,
            plain_server(release) as theirs,
        ):
            addresses = {"fucina": ours.http, "eager loop": theirs}
            for address in addresses.values():  # not counted
                asyncio.run(ask_all(address, 4, 20))
            for clients in CLIENTS:
                rounds: dict[str, list[Round]] = {name: [] for name in addresses}
                for _ in range(options.rounds):
                    for name, address in addresses.items():
                        rounds[name].append(asyncio.run(ask_all(address, clients, options.tokens)))
                _print(clients, rounds)


def _print(clients: int, rounds: dict[str, list[Round]]) -> None:
    first = {n: statistics.median(r.first for r in measured) for n, measured in rounds.items()}
    rate = {n: statistics.median(r.rate for r in measured) for n, measured in rounds.items()}
    for name in rounds:
        print(
            f"{clients:3} clients  {name:10}  first token {first[name] * 1e3:7.1f} ms  "
            f"{rate[name]:8.0f} tokens/s"
        )
    ours, theirs = rounds
    print(
        f"{clients:3} clients  first token {first[theirs] / first[ours]:.2f} times as soon, "
        f"{rate[ours] / rate[theirs]:.2f} times the tokens per second"
    )


if __name__ == "__main__":
    main()
