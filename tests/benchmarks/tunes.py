"""How many of the tunes that a served model writes parse as ABC, at several temperatures.

`python -m tests.benchmarks.tunes runs/lstm-music/bundle [--tunes 20]`
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from models.tunes import is_tune, tunes_in
from serving.launch import serve

TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 1.0)


def main() -> None:
    """Write tunes of the seeds 0, 1, 2, ... and print how many of them parse, and the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tunes", type=int, default=20)
    asked = parser.parse_args()
    example = ""
    with serve([asked.bundle], port=0, grpc_port=0) as server:
        for temperature in TEMPERATURES:
            tunes = write(server.http, asked.tunes, temperature)
            good = [tune for tune in tunes if is_tune(tune)]
            print(f"temperature {temperature}: {len(good)} of {len(tunes)} tunes parse")
            example = example or next(iter(good), "")
    print(f"\n{example}")


def write(address: str, count: int, temperature: float) -> list[str]:
    """As many tunes, each from the model's own opening to the first blank line."""

    def one(seed: int) -> str:
        how = {"seed": seed, "temperature": temperature, "stop": "\n\n", "stream": False}
        answer = httpx.post(f"{address}/generate", json=how | {"max_tokens": 1000}, timeout=300)
        answer.raise_for_status()
        said = answer.json()
        return (tunes_in(said["prompt"] + said["text"]) or [""])[0]

    with ThreadPoolExecutor(count) as clients:
        return list(clients.map(one, range(count)))


if __name__ == "__main__":
    main()
