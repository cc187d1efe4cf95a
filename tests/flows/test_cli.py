"""The command line: documents, exit codes, error lines, resumption."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from flows.release import planned
from flows.serving import said
from models.errors import BadSetting
from tests.flows.conftest import Fucina, ask_prefect

QUICK = ("--set", "epochs=1", "--set", "floor=0.2")


def test_list(fucina: Fucina, tmp_path: Path) -> None:
    done = fucina("list", "--json", cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows.keys() >= {"mlp", "lenet5"}
    for row in rows.values():
        assert {"name", "kind", "paper", "parameters", "data", "metric"} <= row.keys()
    assert rows["lenet5"]["parameters"] == 61_706
    assert rows["mlp"]["data"] == ["embedded", "full"]


@pytest.mark.parametrize(
    ("name", "parameters"), [("lenet5", 61_706), ("mlp", 407_050), ("mlp-dropout", 669_706)]
)
def test_inspect(fucina: Fucina, tmp_path: Path, name: str, parameters: int) -> None:
    done = fucina("inspect", name, "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert document["parameters"] == parameters
    for layer in document["layers"]:
        assert {"output_shape", "parameters", "multiplications", "receptive_field"} <= layer.keys()
    assert sum(layer["parameters"] for layer in document["layers"]) == parameters
    table = fucina("inspect", name, cwd=tmp_path).stdout
    assert f"{parameters:,} parameters" in table


def test_a_stage_has_a_limit(fucina: Fucina, tmp_path: Path) -> None:
    done = fucina("run", "mlp", "--limit", "train=0.01", cwd=tmp_path)
    assert done.returncode == 1
    assert "stage 'train' took too long and was ended: got more than 0.01 s" in done.stderr
    done = fucina("run", "mlp", "--limit", "train=soon", cwd=tmp_path)
    assert done.returncode == 2
    assert "could not convert string to float: 'soon'" in done.stderr


@pytest.mark.parametrize("limits", [{"dream": 5.0}, {"train": 0.0}, {"train": float("nan")}])
def test_a_limit_of_no_stage_and_no_limit_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(BadSetting, match=r"a limit is refused: got (dream=5|train=0|train=nan), "):
        planned({}, limits)


def test_inspect_shows_the_published_size_unless_it_is_told_otherwise(
    fucina: Fucina, tmp_path: Path
) -> None:
    def look(*arguments: str) -> dict[str, Any]:
        return json.loads(fucina("inspect", *arguments, "--json", cwd=tmp_path).stdout)

    first = look("alexnet")["layers"][0]
    assert (first["output_shape"], first["parameters"]) == ([96, 55, 55], 34_944)
    small = look("alexnet", "--data", "embedded")["layers"][0]
    assert small["output_shape"] == [24, 15, 15]

    for settings, multiplications in (((), 12_443_648), (("bottleneck=false",), 120_422_400)):
        published = look("googlenet", *(w for s in settings for w in ("--set", s)))
        blocks = {block["name"]: block for block in published["blocks"]}
        assert blocks["inception3a"]["output_shape"] == [256, 28, 28]
        assert blocks["inception3a.branch5"]["multiplications"] == multiplications
    said = fucina("inspect", "googlenet", cwd=tmp_path).stdout
    assert "6,998,552 parameters (and 6,379,728 in training only)" in said


def test_a_run_on_data_that_no_line_parts_says_so(fucina: Fucina, tmp_path: Path) -> None:
    failed = fucina("train", "perceptron", "--data", "xor", cwd=tmp_path)
    assert failed.returncode == 1
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("fucina: ")]
    assert re.search(r"not linearly separable.*got 0\.\d+, expected 1\.0", line)
    anyway = ("train", "perceptron", "--data", "xor", "--set", "floor=none", "--json")
    document = json.loads(fucina(*anyway, cwd=tmp_path).stdout)
    assert document["metrics"]["accuracy"] <= 0.75
    assert "not linearly separable" in document["remarks"][0]


def test_a_run_ends_in_bundles_and_resumes(
    fucina: Fucina, prefect_api: str, tmp_path: Path
) -> None:
    first = fucina("run", "mlp", "lenet5", *QUICK, "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    rows = json.loads(first.stdout)
    assert [row["name"] for row in rows] == ["mlp", "lenet5"]
    for row in rows:
        assert 0.2 <= row["metrics"]["accuracy"] <= 1
        assert row["certificate"]["passed"] is True
        assert 0 < row["certificate"]["worst_error_over_limit"] <= 1
        assert (tmp_path / row["bundle"] / "manifest.json").is_file()
        assert [engine["target"] for engine in row["engines"]] == ["ort-cpu-fp32"]
    # Plain lines without a terminal, and nothing of Prefect's.
    said = first.stderr.splitlines()
    assert "lenet5 export 4/4 running the graph on every case" in said
    assert all(line.split()[0] in ("mlp", "lenet5") for line in said), first.stderr

    again = fucina("run", "mlp", "lenet5", *QUICK, "--json", cwd=tmp_path)
    assert again.stderr == ""  # no stage had anything to do
    digests = [row["digest"] for row in rows]
    assert [row["digest"] for row in json.loads(again.stdout)] == digests

    # Another setting is another run, and the one before it is kept.
    other = fucina("run", "mlp", *QUICK, "--set", "hidden=16", "--json", cwd=tmp_path)
    assert json.loads(other.stdout)[0]["digest"] != digests[0]
    assert len(list((tmp_path / "runs/mlp/train").iterdir())) == 2

    # The Prefect server saw the flows, their tasks, and the certificate to read.
    runs = ask_prefect(prefect_api, "flow_runs/filter", {})
    names = [run["name"] for run in runs if run["state_type"] == "COMPLETED"]
    assert names.count("release mlp") >= 3
    artifacts = ask_prefect(prefect_api, "artifacts/filter", {})
    text = next(a["data"] for a in artifacts if a["key"] == "certificate-lenet5-ort-cpu-fp32")
    assert text.startswith("# lenet5 on ort-cpu-fp32: passed")
    assert "not run: error budget" in text


def test_stage_by_stage_is_the_same_as_run(fucina: Fucina, tmp_path: Path) -> None:
    for stage in ("train", "export", "optimize", "verify", "package"):
        done = fucina(stage, "mlp", *QUICK, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
    assert document["certificate"]["passed"]
    run = json.loads(fucina("run", "mlp", *QUICK, "--json", cwd=tmp_path).stdout)[0]
    assert run["digest"] == document["digest"]

    report = json.loads(fucina("report", "mlp", "--json", cwd=tmp_path).stdout)
    page = (tmp_path / report["report"]).read_text()
    assert "PyTorch eager" in page
    rows = report["latency"]["rows"]
    assert [row["batch"] for row in rows] == [1, 2, 3, 8, 63, 64]
    assert all(row["ratio"] == row["eager_ms"] / row["engine_ms"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nobody"], "no recipe 'nobody': expected perceptron, xor, mlp"),
        (["run", "mlp", "--data", "none"], "has no data 'none': expected embedded or full"),
        (["run", "mlp", "--set", "epochs=0"], "'epochs' of recipe 'mlp' is refused: got '0'"),
        (
            ["run", "mlp", "--target", "magic"],
            "there is no target 'magic': expected ort-cpu-fp32 or",
        ),
        (["run", "mlp", "--device", "cuda:7"], "device 'cuda:7' is not here: expected cpu"),
        (["run", "mlp", "--set", "epochs=1", "--set", "floor=1"], "misses its floor of test acc"),
        (["run", "--kind", "telepathy"], "no recipe of kind 'telepathy': expected classification"),
        (["export", "mlp"], "has no result of `train`.*run `fucina train mlp`"),
        (["report", "mlp"], "holds no finished run"),
        (["serve", "mlp"], "'mlp' has no bundle in runs; run `fucina run mlp` first"),
        (["serve", "./nowhere"], "nowhere is not a bundle"),
    ],
)
def test_our_errors_are_one_line_and_exit_1(
    fucina: Fucina, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = fucina(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fucina: ")
    assert re.search(words, last)
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("fucina: ") for line in done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["run"], ["fly"], ["run", "mlp", "--set", "epochs"], ["list", "--jsonn"]]
)
def test_usage_errors_exit_2(fucina: Fucina, tmp_path: Path, arguments: list[str]) -> None:
    assert fucina(*arguments, cwd=tmp_path).returncode == 2


def test_one_failed_recipe_does_not_stop_the_others(fucina: Fucina, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from models.mlp import MLP_784_512_10\n"
        "PROUD = replace(MLP_784_512_10, name='proud', floor={'embedded': 1.0})\n"
    )
    done = fucina("run", "mine:PROUD", "mlp", "--set", "epochs=8", "--json", cwd=tmp_path)
    failed, passed = json.loads(done.stdout)
    assert done.returncode == 1
    assert "misses its floor" in failed["error"]
    assert passed["certificate"]["passed"]


def test_no_network_and_no_data_is_one_line(fucina: Fucina, tmp_path: Path) -> None:
    nothing = tmp_path / "data"
    nothing.mkdir()
    done = fucina("run", "mlp", "--data", "full", cwd=tmp_path, FUCINA_DATA=str(nothing))
    assert done.returncode == 1
    assert "is missing; put it there, or unset FUCINA_DATA" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_download_that_fails_on_its_way_is_tried_again(fucina: Fucina, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from models.digits import embedded_digits\n"
        "from models.errors import DataUnavailable\n"
        "from models.mlp import MLP_784_512_10\n"
        "def flaky():\n"
        "    tries = Path('tries')\n"
        "    with tries.open('a') as file: file.write('x')\n"
        "    if len(tries.read_text()) == 1:\n"
        "        raise DataUnavailable('the net is down') from OSError('reset')\n"
        "    return embedded_digits()\n"
        "FLAKY = replace(MLP_784_512_10, name='flaky', data={'embedded': flaky})\n"
    )
    done = fucina("run", "mine:FLAKY", *QUICK, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "tries").read_text()) >= 2


def test_a_damaged_result_is_made_again(fucina: Fucina, tmp_path: Path) -> None:
    before = json.loads(fucina("run", "mlp", *QUICK, "--json", cwd=tmp_path).stdout)[0]
    (model,) = (tmp_path / "runs/mlp/export").glob("*/model.onnx")
    model.write_bytes(model.read_bytes()[:-7])
    done = fucina("run", "mlp", *QUICK, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)[0]["digest"] == before["digest"]
    assert "mlp export 4/4" in done.stderr
    assert "mlp train" not in done.stderr


def test_a_prefect_server_that_does_not_answer_is_one_line(fucina: Fucina, tmp_path: Path) -> None:
    dead = "http://127.0.0.1:1/api"
    done = fucina("run", "mlp", cwd=tmp_path, PREFECT_API_URL=dead)
    assert done.returncode == 1
    assert done.stderr == (
        f"fucina: the Prefect server does not answer: got {dead}; "
        "start it, or unset PREFECT_API_URL to use a temporary one\n"
    )


def test_the_server_of_a_prefect_profile_is_used(fucina: Fucina, tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text(
        'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:1/api"\n'
    )
    done = fucina("run", "mlp", cwd=tmp_path, PREFECT_API_URL="", PREFECT_HOME=str(tmp_path))
    assert "the Prefect server does not answer: got http://127.0.0.1:1/api" in done.stderr


def test_the_temporary_prefect_server_ends_with_the_run(fucina: Fucina, tmp_path: Path) -> None:
    script = (
        "import json, os, sys; from flows.environment import prefect_server\n"
        "with prefect_server() as ready:\n"
        "    ready()\n"
        "    import urllib.request\n"
        "    address = os.environ['PREFECT_API_URL']\n"
        "    health = urllib.request.urlopen(address + '/health').status\n"
        "    print(json.dumps([address, health]), flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = fucina(cwd=tmp_path, code=script, PREFECT_API_URL="")
    address, health = json.loads(done.stdout)
    assert health == 200
    assert done.returncode == -9
    for _ in range(100):  # it ends by itself although its parent was killed
        try:
            urllib.request.urlopen(f"{address}/health", timeout=1)
        except (urllib.error.URLError, OSError):
            return
        time.sleep(0.2)
    pytest.fail("the temporary server outlived the run that started it")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"predictions": [{"class": "7", "probability": 0.9}]}, "class 7, probability 0.9"),
        ({"predictions": [], "outputs": {"y": [1]}}, '{"y": [1]}'),
        ({"prompt": "a", "text": "b", "seed": 1}, "'a' goes on with 'b'"),
        ({"seed": 5, "classes": []}, "pictures of seed 5"),
        ({"seed": None, "errors": [0.01]}, "reconstructed with a mean squared error of 0.0100"),
        (
            {"threshold": 0.2, "pictures": [{"error": 0.3, "anomalous": True}]},
            "an error of 0.3000; above 0.2000 is an anomaly",
        ),
        ({"actions": [{"name": "left", "q_values": {"left": 2, "right": 1}}]}, "left (left 2.00"),
        (
            {"classes": [{"name": "cell", "share": 0.5}], "width": 3, "height": 2},
            "cell 50.0% of 3 x 2 pixels",
        ),
    ],
)
def test_an_answer_of_each_kind_is_said_in_words(answer: dict[str, Any], words: str) -> None:
    assert said(answer).startswith(words)
