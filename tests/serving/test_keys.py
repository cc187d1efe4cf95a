"""API keys: only a hash is kept, a change is seen at once, and nothing shows a key twice."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.cli import cli
from models.errors import BadSetting, FucinaError
from serving.keys import PREFIX, KeyRing, add_key, digest, read_keys, revoke_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def keys_command(*arguments: str) -> Result:
    return CliRunner(catch_exceptions=True).invoke(cli, ["keys", *arguments])


def test_a_key_is_found_and_is_not_in_the_file(path: Path) -> None:
    key = add_key(path, "ada")
    assert key.startswith(PREFIX)
    assert len(key) - len(PREFIX) == 43  # 256 bits in base64
    found = KeyRing(path).find(key)
    assert found is not None
    assert (found.name, found.models, found.admin) == ("ada", None, False)
    kept = path.read_text()
    assert key not in kept
    assert key.removeprefix(PREFIX) not in kept
    assert found.sha256 == digest(key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*path.parent.iterdir()] == [path]


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=100))
def test_nothing_else_is_found(other: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.json"
        key = add_key(path, "ada")
        ring = KeyRing(path)
        for wrong in (other, key[:-1], f"{key}{other}x", key.upper(), f" {key}", digest(key)):
            assert ring.find(wrong) is None
        assert ring.find(key) is not None


def test_a_change_is_seen_by_a_running_server(path: Path) -> None:
    ada, bob = add_key(path, "ada"), add_key(path, "bob")
    ring = KeyRing(path)
    assert ring.find(ada)
    assert ring.find(bob)
    revoke_key(path, "ada")
    assert ring.find(ada) is None
    assert ring.find(bob)
    eve = add_key(path, "eve", models=("digits",))
    found = ring.find(eve)
    assert found is not None
    assert found.models == ("digits",)


@pytest.mark.parametrize("broken", ["", "{", '{"keys": 3}', '{"keys": [{"name": "x"}]}', None])
def test_of_a_file_that_cannot_be_read_nobody_is_let_in(
    path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    key = add_key(path, "ada")
    sound = path.read_bytes()
    ring = KeyRing(path)
    assert ring.find(key)
    path.unlink()
    if broken is not None:
        path.write_text(broken)
    assert ring.find(key) is None
    assert ring.find(key) is None
    assert len([line for line in caplog.messages if "nobody is let in" in line]) == 1
    path.write_bytes(sound)
    assert ring.find(key)


def test_what_cannot_be_read_is_not_quoted(path: Path) -> None:
    path.write_text(json.dumps({"keys": [{"name": "ada", "key": "fucina_by-mistake"}]}))
    with pytest.raises(BadSetting, match="cannot be read") as caught:
        read_keys(path)
    assert "by-mistake" not in str(caught.value)


def test_a_key_expires(path: Path) -> None:
    key = add_key(path, "ada", expires=datetime.now(UTC) + timedelta(hours=1))
    ring = KeyRing(path)
    assert ring.find(key)
    past = read_keys(path)[0].model_copy(update={"expires": datetime.now(UTC)})
    path.write_text(json.dumps({"keys": [past.model_dump(mode="json")]}))
    assert ring.find(key) is None
    with pytest.raises(BadSetting, match="expired already"):
        add_key(path, "bob", expires=datetime.now(UTC))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"name": "ada"}, "is in .* already"),
        ({"name": ""}, "name does not fit"),
        ({"name": "a b"}, "name does not fit"),
        ({"name": "a\n"}, "name does not fit"),
        ({"name": "x" * 65}, "name does not fit"),
        ({"name": "bob", "admin": True, "models": ("digits",)}, "may ask every model"),
    ],
)
def test_a_key_that_would_make_no_sense_is_refused(
    path: Path, how: dict[str, Any], said: str
) -> None:
    add_key(path, "ada")
    before = path.read_bytes()
    with pytest.raises(BadSetting, match=said):
        add_key(path, **how)
    assert path.read_bytes() == before


def test_nothing_is_lost_when_several_write(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = [*pool.map(lambda number: add_key(path, f"n{number}"), range(24))]
    assert {key.name for key in read_keys(path)} == {f"n{number}" for number in range(24)}
    ring = KeyRing(path)
    assert all(ring.find(key) for key in keys)


def test_a_failed_write_leaves_the_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_key(path, "ada")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        add_key(path, "bob")
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


def test_the_commands_print_a_key_once(path: Path) -> None:
    made = keys_command("add", "ada", "--file", str(path), "--days", "30", "--model", "digits")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    found = KeyRing(path).find(key)
    assert found is not None
    assert found.expires is not None
    assert timedelta(days=29) < found.expires - datetime.now(UTC) <= timedelta(days=30)

    shown = keys_command("list", "--file", str(path)).stdout
    assert shown.startswith("ada: created ")
    assert "digits" in shown
    (document,) = json.loads(keys_command("list", "--file", str(path), "--json").stdout)
    assert document["name"] == "ada"
    assert document["expired"] is False
    for text in (shown, json.dumps(document)):
        assert key not in text
        assert digest(key) not in text

    assert keys_command("revoke", "ada", "--file", str(path)).stdout == "ada is revoked\n"
    assert KeyRing(path).find(key) is None
    again = keys_command("revoke", "ada", "--file", str(path))
    assert isinstance(again.exception, FucinaError)
    assert "there is no key 'ada'" in str(again.exception)


def test_the_commands_load_nothing_heavy(path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.argv[1:] = ['keys', 'add', 'ada', '--file', {str(path)!r}]\n"
        "from flows.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'bentoml', 'grpc', 'prefect'} & {*sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    key, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert KeyRing(path).find(key)
