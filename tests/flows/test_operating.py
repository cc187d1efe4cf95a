"""What is blessed, tried and rolled back from the command line, and a server that follows it."""

from __future__ import annotations

import getpass
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flows.cli import cli
from flows.output import print_next
from models.errors import BadSetting, MissingArtifact
from pipeline import blessed
from serving.client import Client
from tests.serving.versions import NAME, ONE, make_run, make_version


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("versions")
    return [make_version(folder / str(number), number) for number in (1, 2)]


@pytest.fixture
def run(made: list[Path], tmp_path: Path) -> Path:
    return make_run(tmp_path, made)


def fucina(run: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, [*words, "--out", str(run.parent)])


def said(run: Path, *words: str) -> Any:
    result = fucina(run, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_record_from_the_first_blessing_to_a_rollback(run: Path) -> None:
    first = said(run, "bless", NAME)  # the last that was packaged
    assert (first["version"], first["bundle"], first["previous"]) == ("1", "1", None)
    assert said(run, "canary", NAME, str(run / "2"), "--percent", "5")["percent"] == 5
    told = said(run, "versions", NAME)
    assert (told["standing"], told["canary"]) == ("1", {"version": "2", "percent": 5})
    assert said(run, "canary", NAME, "--percent", "0")["action"] == "canary"
    assert said(run, "versions", NAME)["canary"] is None
    said(run, "bless", NAME, str(run / "2"))
    assert said(run, "rollback", NAME)["version"] == "1"
    told = said(run, "versions", NAME)
    assert told["standing"] == "1"
    assert [entry["action"] for entry in told["record"]] == [
        "bless", "canary", "canary", "bless", "rollback",
    ]  # fmt: skip
    assert all(len(entry["certificates"]["ort-cpu-fp32"]) == 64 for entry in told["record"])


def test_who_decided_is_who_is_named_else_the_user(run: Path) -> None:
    assert blessed.bless(run, run / "1", "Ada Lovelace").who == "Ada Lovelace"
    assert blessed.bless(run, run / "2").who == getpass.getuser()
    assert [entry.who for entry in blessed.read_record(run)] == ["Ada Lovelace", getpass.getuser()]


def test_the_record_as_a_table(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    fucina(run, "bless", NAME)
    fucina(run, "canary", NAME, str(run / "2"), "--percent", "12.5")
    heading, *rows = fucina(run, "versions", NAME).stdout.splitlines()
    assert heading.split() == ["when", "who", "decision", "version", "certificate", "bundle", "now"]
    assert len(rows) == 2
    assert "bless" in rows[0]
    assert rows[0].rstrip().endswith("stands")
    assert "canary 12.5 %" in rows[1]
    assert rows[1].rstrip().endswith("canary, 12.5 %")


@pytest.mark.parametrize(
    ("words", "kind", "why"),
    [
        (("rollback", NAME), MissingArtifact, "has no blessed bundle to go back to"),
        (("versions", NAME), MissingArtifact, "nothing of 'level' is blessed"),
        (("canary", NAME), MissingArtifact, "no blessed bundle beside which to try another"),
        (("canary", NAME, "--percent", "0"), MissingArtifact, "has no canary to end"),
    ],
)
def test_what_cannot_be_done_says_so(
    run: Path, words: tuple[str, ...], kind: type[Exception], why: str
) -> None:
    with pytest.raises(kind, match=why):
        raise fucina(run, *words).exception or AssertionError("it was done")


def test_a_canary_of_what_stands_is_refused(run: Path) -> None:
    fucina(run, "bless", NAME)
    error = fucina(run, "canary", NAME).exception
    assert isinstance(error, BadSetting)
    assert "is the one that is served already" in str(error)


def test_a_run_of_what_is_blessed_says_how_to_bless_the_new_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for standing, expected in ((None, 0), ("2", 0), ("1", 1)):
        row = {"name": NAME, "kind": "classification", "version": "2", "blessed": standing}
        print_next([row], Path("elsewhere"))
        assert capsys.readouterr().out.count(f"bless {NAME} --out elsewhere") == expected


def test_a_server_follows_the_record_when_it_is_told_to(run: Path) -> None:
    fucina(run, "bless", NAME)
    command = [
        sys.executable, "-m", "flows", "serve", NAME, "--out", str(run.parent), "--port", "0",
        "--grpc-port", "0", "--watch", "0", "--json",
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout
            text = ""
            while not text.rstrip().endswith("}"):
                line = process.stdout.readline()
                assert line, "the server ended"
                text += line
            with Client(json.loads(text)["rest"]) as client:

                def answer() -> tuple[str, float]:
                    found = client.ask(NAME, {"features": ONE})
                    return found.version, found.outputs["value"].item()

                assert answer() == ("1", 1)
                fucina(run, "bless", NAME, str(run / "2"))
                process.send_signal(signal.SIGHUP)
                deadline = time.monotonic() + 20
                while answer() != ("2", 2):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                assert process.poll() is None
        finally:
            process.terminate()
            process.wait(30)
