"""The record of what is blessed: it folds like a stack, and nothing ends it half-written."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codec import Codec
from models.errors import BadSetting, BundleError, MissingArtifact, NotABundle
from models.signature import Signature, TensorSpec
from pipeline import blessed
from pipeline.artifacts import digest_files, save, write_json
from pipeline.blessed import LAST, RECORD, Standing, read_record, standing
from pipeline.bundle import CASES, MANIFEST, Manifest, open_bundle
from pipeline.cases import CASES_FILE
from pipeline.values import CODEC, MODEL

Step = tuple[str, str, float]
VERSIONS = ("1", "2", "3")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("bless"), st.sampled_from(VERSIONS), st.just(100.0)),
        st.tuples(st.just("canary"), st.sampled_from(VERSIONS), st.sampled_from((0.5, 10, 100))),
        st.just(("end", "", 0.0)),
        st.just(("rollback", "", 0.0)),
    ),
    max_size=14,
)


def make_bundle(folder: Path, name: str, version: str, content: str = "") -> Path:
    """The least that opens as a bundle: a manifest without engines, over three small files."""
    (folder / CASES).mkdir(parents=True)
    (folder / MODEL).write_text(version + content)
    (folder / CASES / CASES_FILE).write_bytes(b"")
    write_json(folder / CODEC, Codec().model_dump(mode="json"))
    signature = Signature(
        inputs=(TensorSpec("x", "float32", (1,)),), outputs=(TensorSpec("y", "float32", (1,)),)
    )
    names = [MODEL, f"{CASES}/{CASES_FILE}", CODEC]
    facts: dict[str, Any] = {
        "name": name, "version": version, "kind": "classification", "title": "", "paper": "",
        "signature": signature, "lineage": {}, "data": {},
        "metrics": {}, "libraries": {}, "engines": (), "files": digest_files(folder, names),
    }  # fmt: skip
    save(Manifest(**facts), folder, MANIFEST)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "net"
    for version in VERSIONS:
        make_bundle(folder / "made" / version, "net", version)
    return folder


def take(run: Path, step: Step) -> None:
    action, version, percent = step
    bundle = run / "made" / version
    if action == "bless":
        blessed.bless(run, bundle)
    elif action == "canary":
        blessed.canary(run, bundle, percent)
    elif action == "end":
        blessed.end_canary(run)
    else:
        blessed.rollback(run)


def model(steps: list[Step]) -> tuple[list[str], tuple[str, float] | None, list[bool]]:
    """What the record should say: a stack, the canary, and which steps are refused."""
    stack: list[str] = []
    canary: tuple[str, float] | None = None
    taken = []
    for action, version, percent in steps:
        allowed = {
            "bless": True,
            "canary": bool(stack) and stack[-1] != version,
            "end": canary is not None,
            "rollback": canary is not None or len(stack) > 1,
        }[action]
        taken.append(allowed)
        if not allowed:
            continue
        if action == "canary":
            canary = (version, percent)
            continue
        if action == "bless" and stack[-1:] != [version]:
            stack.append(version)
        if action == "rollback" and canary is None:
            stack.pop()
        canary = None
    return stack, canary, taken


def versions(found: Standing) -> tuple[str, tuple[str, float] | None]:
    canary = (found.canary.version, found.percent) if found.canary else None
    return found.bundle.version, canary


@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_decisions_fold_to_what_a_stack_says(
    steps: list[Step], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.mktemp("law") / "net"
    for version in VERSIONS:
        make_bundle(run / "made" / version, "net", version)
    stack, canary, expected = model(steps)
    taken = []
    for step in steps:
        before = (run / RECORD).read_bytes() if (run / RECORD).exists() else b""
        try:
            take(run, step)
            taken.append(True)
        except (MissingArtifact, BadSetting):
            taken.append(False)
            assert (run / RECORD).read_bytes() == before  # a refused decision leaves no trace
        else:
            assert (run / RECORD).read_bytes().startswith(before)  # the record only grows
    assert taken == expected
    if stack:
        assert versions(standing(run)) == (stack[-1], canary)
        last = read_record(run)[-1]
        beneath = stack[-2] if len(stack) > 1 else None
        assert last.action == "canary" or last.previous == beneath
    else:
        assert not read_record(run)


def test_a_rollback_of_a_rollback_goes_further_back(run: Path) -> None:
    for version in VERSIONS:
        take(run, ("bless", version, 100.0))
    assert [blessed.rollback(run).version for _ in range(2)] == ["2", "1"]
    with pytest.raises(MissingArtifact, match="no blessed bundle before '1' to go back to"):
        blessed.rollback(run)
    take(run, ("bless", "3", 100.0))
    assert blessed.rollback(run).version == "1"


def test_without_a_blessing_the_last_bundle_stands(run: Path) -> None:
    with pytest.raises(MissingArtifact, match="has no bundle"):
        standing(run)
    (run / LAST).symlink_to("made/2")
    assert standing(run).bundle.folder == (run / "made" / "2").resolve()
    take(run, ("bless", "1", 100.0))
    assert standing(run).bundle.folder == run / "made" / "1"


@pytest.mark.parametrize("rest", [b"{", b'{"action": "bless"', "é".encode()[:1], b"{}"])
def test_a_line_that_a_crash_cut_off_never_counted(run: Path, rest: bytes) -> None:
    take(run, ("bless", "1", 100.0))
    whole = (run / RECORD).read_bytes()
    (run / RECORD).write_bytes(whole + rest)
    assert versions(standing(run)) == ("1", None)
    take(run, ("bless", "2", 100.0))
    assert (run / RECORD).read_bytes().startswith(whole)
    assert [entry.version for entry in read_record(run)] == ["1", "2"]


def test_every_cut_of_the_last_line_leaves_the_decisions_before_it(run: Path) -> None:
    take(run, ("bless", "1", 100.0))
    first = len((run / RECORD).read_bytes())
    take(run, ("bless", "2", 100.0))
    whole = (run / RECORD).read_bytes()
    for end in range(first, len(whole)):
        (run / RECORD).write_bytes(whole[:end])
        assert [entry.version for entry in read_record(run)] == ["1"]


def test_a_whole_line_that_is_no_decision_is_refused_by_number(run: Path) -> None:
    take(run, ("bless", "1", 100.0))
    with (run / RECORD).open("ab") as record:
        record.write(b'{"action": "bless"}\n')
    with pytest.raises(BundleError, match=r"line 2 of .* is no decision"):
        standing(run)


def test_a_rollback_to_what_was_not_there_is_refused(run: Path) -> None:
    take(run, ("bless", "1", 100.0))
    line = json.loads((run / RECORD).read_text()) | {"action": "rollback"}
    with (run / RECORD).open("a") as record:
        record.write(json.dumps(line) + "\n")
    with pytest.raises(BundleError, match="decision 2 of the record goes back to what was not"):
        standing(run)


def test_a_disk_that_is_full_leaves_the_record_as_it_was(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(run, ("bless", "1", 100.0))
    before = (run / RECORD).read_bytes()
    write, calls = blessed.os.write, []

    def full(file: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(file, data[:10])

    monkeypatch.setattr(blessed.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        take(run, ("bless", "2", 100.0))
    assert len(calls) == 2
    assert (run / RECORD).read_bytes() == before


def test_a_bundle_changed_after_its_blessing_is_not_the_one(run: Path) -> None:
    take(run, ("bless", "1", 100.0))
    chosen = standing(run).bundle
    chosen.check(open_bundle(chosen.folder))
    shutil.rmtree(chosen.folder)
    make_bundle(chosen.folder, "net", "1", "something else")
    with pytest.raises(BundleError, match="is not the bundle that was blessed"):
        chosen.check(open_bundle(chosen.folder))
    with pytest.raises(BadSetting, match="version '1' of 'net' was blessed with other content"):
        take(run, ("bless", "1", 100.0))
    # Nor can one go back to it.
    take(run, ("bless", "2", 100.0))
    with pytest.raises(BundleError, match="is not the bundle that was blessed"):
        blessed.rollback(run)
    assert versions(standing(run)) == ("2", None)


def test_a_canary_whose_bundle_is_gone_can_be_ended(run: Path) -> None:
    take(run, ("bless", "1", 100.0))
    take(run, ("canary", "2", 10.0))
    shutil.rmtree(run / "made" / "2")
    blessed.rollback(run)
    assert versions(standing(run)) == ("1", None)


def test_what_cannot_be_blessed(run: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", "another", "1")
    with pytest.raises(BadSetting, match="a bundle of 'another' cannot be served as 'net'"):
        blessed.bless(run, other)
    with pytest.raises(NotABundle):
        blessed.bless(run, tmp_path)
    with pytest.raises(BadSetting, match="a canary needs a share"):
        blessed.canary(run, run / "made" / "2", 101)


def test_a_user_without_a_name_is_told_by_number(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(blessed, "getpass", SimpleNamespace(getuser=nobody))
    assert blessed.bless(run, run / "made" / "1").who.isdecimal()


def bless_many(run: Path, version: str, times: int) -> None:
    for number in range(times):
        if number % 3 == 2:
            with suppress(MissingArtifact):
                blessed.rollback(run)
        blessed.bless(run, run / "made" / version)


def test_processes_that_decide_at_once_each_decide_wholly(run: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=bless_many, args=(run, v, 12)) for v in VERSIONS]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    entries = read_record(run)
    assert sum(entry.action == "bless" for entry in entries) == 36
    history, _ = blessed.fold(entries)  # every rollback among them was to what was there
    assert history[-1].version == standing(run).bundle.version
