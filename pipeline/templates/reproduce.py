"""Reproduce: run minimal.onnx on inputs.npz and compare with expected.npz; 1 if it diverges."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main(folder: Path) -> int:
    settings = json.loads((folder / "settings.json").read_text())
    inputs = dict(np.load(folder / "inputs.npz", allow_pickle=False))
    expected = dict(np.load(folder / "expected.npz", allow_pickle=False))
    options = ort.SessionOptions()
    level = f"ORT_{settings['optimization_level']}"
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads = settings["intra_op_threads"]
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            str(folder / "minimal.onnx"), options, providers=["CPUExecutionProvider"]
        )
        answers = session.run(list(expected), inputs)
    except Exception as error:
        print(f"the graph does not run: {str(error).splitlines()[0]}")
        return 1
    diverged = False
    for name, actual in zip(expected, answers, strict=True):
        found = difference(np.asarray(actual), expected[name])
        limit = settings["limits"][name]
        wrong = not found <= limit
        diverged |= wrong
        print(f"{name}: error {found:.2e}, limit {limit:.2e}: {'diverges' if wrong else 'agrees'}")
    return int(diverged)


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """max |actual - expected| / max |expected|; NaN unless both are NaN in the same places."""
    if actual.shape != expected.shape:
        print(f"shape {list(actual.shape)}, expected {list(expected.shape)}")
        return float("inf")
    wide, wanted = actual.astype(np.float64), expected.astype(np.float64)
    same = (wide == wanted) | (np.isnan(wide) & np.isnan(wanted))
    if same.all():
        return 0.0
    scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        worst = np.abs(wide - wanted)[~same].max()
    return float(worst / scale) if scale else float("inf")


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent))
