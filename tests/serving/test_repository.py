"""What a process serves follows its folders: swaps, canaries, failures, loading and unloading."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import NotReady, UnknownModel
from pipeline import blessed
from pipeline.blessed import RECORD
from pipeline.bundle import CASES
from pipeline.cases import read_cases, write_cases
from serving import model as served
from serving.model import Model
from serving.opening import open_bundles, open_session
from serving.predictor import Models
from serving.repository import Repository
from serving.settings import Settings
from serving.telemetry import Telemetry
from tests.serving.conftest import LEVEL, write_manifest
from tests.serving.versions import NAME, ONE, make_run, make_version


class Told:
    """What a repository told its telemetry."""

    def __init__(self) -> None:
        self.swaps: list[tuple[str, bool]] = []
        self.why = ""
        self.ready: dict[str, bool] = {}

    def swapped(self, model: str, version: str, ok: bool, why: str = "") -> None:
        self.swaps.append((version, ok))
        self.why = why


class Following:
    """A repository that watches, and the models it serves."""

    def __init__(self, folders: tuple[Path, ...], recheck: float = 0.0) -> None:
        self.settings = Settings(bundles=folders, watch=0.01, recheck=recheck)
        self.told = Told()
        self.models = Models(self.settings, Telemetry())
        telemetry: Any = self.told
        self.repository = Repository(
            self.models, self.settings, open_bundles(folders), "classification", telemetry
        )

    def versions(self) -> list[str]:
        return sorted(model.version for model in self.models.versions(NAME))

    async def answer(self, version: str = "") -> float:
        model = self.models.get(NAME, version)
        return float((await model.predict({"features": ONE}))["value"][0, 0])


Scenario = Callable[[Following], Awaitable[None]]


def follow(scenario: Scenario, *folders: Path, recheck: float = 0.0) -> None:
    """Run a scenario beside a repository that follows these folders."""

    async def whole() -> None:
        following = Following(folders, recheck)
        await following.models.load()
        watching = asyncio.create_task(following.repository.watch())
        try:
            await scenario(following)
        finally:
            watching.cancel()
            await following.models.close()

    asyncio.run(asyncio.wait_for(whole(), 60))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("versions")
    return [make_version(folder / str(number), number) for number in (1, 2, 3)]


@pytest.fixture
def run(made: list[Path], tmp_path: Path) -> Path:
    return make_run(tmp_path, made)


def spoil(bundle: Path, version: int) -> None:
    """Whole, certified, and not what was recorded: its replay fails."""
    cases = read_cases(bundle / CASES)
    cases[0].reference["value"][0, 0] += 0.5
    write_cases(cases, bundle / CASES)
    write_manifest(bundle, name=NAME, signature=LEVEL, version=str(version))


def test_a_blessed_version_takes_over_and_a_rollback_gives_back(run: Path) -> None:
    async def scenario(server: Following) -> None:
        assert await server.answer() == 1
        blessed.bless(run, run / "1")
        blessed.bless(run, run / "2")
        await until(lambda: server.models.standing(NAME) == "2")
        assert (await server.answer(), server.versions()) == (2, ["2"])
        with pytest.raises(UnknownModel, match="has no version '1'"):
            await server.answer("1")
        blessed.rollback(run)
        await until(lambda: server.models.standing(NAME) == "1")
        assert await server.answer() == 1
        assert server.told.swaps == [("2", True), ("1", True)]

    follow(scenario, run)


def test_what_nobody_blessed_is_not_followed(run: Path) -> None:
    async def scenario(server: Following) -> None:
        (run / "bundle").unlink()
        (run / "bundle").symlink_to("3")
        await asyncio.sleep(0.1)
        assert server.versions() == ["1"]
        await server.repository.load(NAME)  # who asks for it gets it
        assert await server.answer() == 3

    follow(scenario, run)


@pytest.mark.parametrize("recheck", [0.0, 1.0])
def test_a_version_that_is_dropped_answers_what_it_has_and_is_freed(
    run: Path, monkeypatch: pytest.MonkeyPatch, recheck: float
) -> None:
    engines: list[weakref.ref[Any]] = []

    def opened(*which: Any, **how: Any) -> Any:
        session = open_session(*which, **how)
        engines.append(weakref.ref(session))
        return session

    monkeypatch.setattr(served, "open_session", opened)

    async def scenario(server: Following) -> None:
        old = server.models.get(NAME)
        gone = [weakref.ref(old), weakref.ref(old.bundle), engines[0]]
        blessed.bless(run, run / "2")
        await until(lambda: server.models.standing(NAME) == "2")
        late = await old.predict({"features": ONE})
        assert late["value"][0, 0] == 1
        del old, late
        await until(lambda: all(one() is None for one in gone))  # threads let go of their last work
        assert engines[1]() is not None

    gc.collect()
    gc.disable()  # it is freed at once, not when a collection comes by, which may never be
    try:
        follow(scenario, run, recheck=recheck)
    finally:
        gc.enable()


def test_a_canary_gets_its_share_and_no_more(run: Path) -> None:
    blessed.bless(run, run / "1")
    blessed.canary(run, run / "2", 25)

    async def scenario(server: Following) -> None:
        # It was tried before this server started.
        await until(lambda: server.models.canary(NAME) is not None)
        assert server.models.canary(NAME) == ("2", 25)
        chosen = [server.models.get(NAME).version for _ in range(4000)]
        assert set(chosen) == {"1", "2"}
        # Five standard deviations of so many draws.
        assert abs(chosen.count("2") / 4000 - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
        assert [await server.answer(v) for v in ("1", "2")] == [1, 2]
        blessed.canary(run, run / "2", 100)
        await until(lambda: server.models.canary(NAME) == ("2", 100))
        assert {server.models.get(NAME).version for _ in range(100)} == {"2"}
        assert server.models.standing(NAME) == "1"
        blessed.rollback(run)
        await until(lambda: server.models.canary(NAME) is None)
        assert server.versions() == ["1"]
        assert server.told.swaps == [("2", True)]  # once, whatever its share

    follow(scenario, run)


def test_a_version_that_fails_its_replay_keeps_the_old_one_and_is_told_once(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(run / "2", 2)

    async def scenario(server: Following) -> None:
        blessed.bless(run, run / "1")
        blessed.bless(run, run / "2")
        await until(lambda: bool(server.told.swaps))
        await asyncio.sleep(0.1)  # several looks
        assert server.told.swaps == [("2", False)]
        assert "does not reproduce its recorded case" in server.told.why
        assert (await server.answer(), server.versions()) == (1, ["1"])
        assert server.models.ready
        entry = next(e for e in server.repository.index() if e.version == "2")
        assert entry.state == "UNAVAILABLE"
        assert "does not reproduce" in entry.reason
        assert [e.version for e in server.repository.index(ready=True)] == ["1"]
        blessed.bless(run, run / "3")
        await until(lambda: server.models.standing(NAME) == "3")
        assert [e.version for e in server.repository.index()] == ["3"]

    with caplog.at_level("ERROR", "fucina.serving"):
        follow(scenario, run)
    assert sum("version 1 goes on answering" in line for line in caplog.messages) == 1


def test_a_bundle_that_changed_after_its_blessing_is_refused(run: Path) -> None:
    async def scenario(server: Following) -> None:
        blessed.bless(run, run / "1")
        blessed.bless(run, run / "2")
        await until(lambda: server.models.standing(NAME) == "2")
        # Whole and certified, but another one under the blessed name.
        blessed.canary(run, run / "3", 10)
        await until(lambda: server.models.canary(NAME) is not None)
        blessed.end_canary(run)
        await until(lambda: server.models.canary(NAME) is None)
        write_manifest(run / "3", name=NAME, signature=LEVEL, version="3", title="another")
        lines = (run / RECORD).read_text().splitlines()
        again = json.loads(lines[2])
        with (run / RECORD).open("a") as record:
            record.write(json.dumps(again) + "\n")
        await until(lambda: ("3", False) in server.told.swaps)
        assert "is not the bundle that was blessed" in server.told.why
        assert (await server.answer(), server.models.canary(NAME)) == (2, None)

    follow(scenario, run)


def test_a_canary_that_fails_does_not_keep_its_neighbour_from_standing(run: Path) -> None:
    spoil(run / "3", 3)

    async def scenario(server: Following) -> None:
        blessed.bless(run, run / "2")
        blessed.canary(run, run / "3", 50)
        await until(lambda: ("3", False) in server.told.swaps)
        await until(lambda: server.models.standing(NAME) == "2")
        assert {server.models.get(NAME).version for _ in range(50)} == {"2"}
        assert server.versions() == ["2"]

    follow(scenario, run)


def test_a_record_that_cannot_be_read_changes_nothing(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(server: Following) -> None:
        (run / RECORD).write_text("nonsense\n")
        await until(lambda: "line 1" in caplog.text)
        assert await server.answer() == 1
        (run / RECORD).write_text("")
        blessed.bless(run, run / "2")
        await until(lambda: server.models.standing(NAME) == "2")

    follow(scenario, run)


def test_loading_never_makes_the_server_unready_nor_shows_a_version_before_its_time(
    run: Path,
) -> None:
    async def scenario(server: Following) -> None:
        seen: set[tuple[str, ...]] = set()
        loading = False
        blessed.bless(run, run / "2")
        while server.models.standing(NAME) != "2":
            assert server.models.ready
            seen.add(tuple(server.versions()))
            loading |= any(e.state == "LOADING" for e in server.repository.index())
            await asyncio.sleep(0)
        assert seen == {("1",)}
        assert loading

    follow(scenario, run)


def test_unloading_answers_what_is_there_and_blessing_does_not_load_again(run: Path) -> None:
    async def scenario(server: Following) -> None:
        model = server.models.get(NAME)
        await server.repository.unload(NAME)
        assert (await model.predict({"features": ONE}))["value"][0, 0] == 1
        for call in (server.answer, lambda: server.repository.unload(NAME)):
            with pytest.raises(UnknownModel):
                await call()
        assert [(e.state, e.reason) for e in server.repository.index()] == [
            ("UNAVAILABLE", "unloaded")
        ]
        blessed.bless(run, run / "2")
        await asyncio.sleep(0.1)
        assert server.versions() == []
        await server.repository.load(NAME)
        assert await server.answer() == 2
        with pytest.raises(UnknownModel, match="model 'nothing' is unknown"):
            await server.repository.load("nothing")

    follow(scenario, run)


def test_loading_a_folder_that_went_bad_keeps_what_is_served(made: list[Path], run: Path) -> None:
    bundle = run / "1"

    async def scenario(server: Following) -> None:
        before = server.models.get(NAME)
        await server.repository.load(NAME)
        assert server.models.get(NAME) is before  # nothing has changed
        (bundle / "model.onnx").write_bytes(b"")
        with pytest.raises(NotReady, match="not the file that was recorded"):
            await server.repository.load(NAME)
        assert server.models.get(NAME) is before
        shutil.rmtree(bundle)
        shutil.copytree(made[2], bundle)
        await server.repository.load(NAME)
        assert (await server.answer(), server.versions()) == (3, ["3"])

    follow(scenario, bundle)


def test_several_versions_are_served_at_once_and_the_last_one_stands(made: list[Path]) -> None:
    async def scenario(server: Following) -> None:
        assert server.versions() == ["1", "2", "3"]
        assert [await server.answer(v) for v in ("", "1", "2")] == [3, 1, 2]

    follow(scenario, *made)


def test_requests_while_versions_change_are_each_answered_by_one(run: Path) -> None:
    async def scenario(server: Following) -> None:
        wrong: list[tuple[str, float]] = []
        counted = 0

        async def client() -> None:
            nonlocal counted
            while counted < 10_000 and server.versions() != ["3"]:
                model: Model = server.models.get(NAME)
                value = (await model.predict({"features": np.repeat(ONE, 3, 0)}))["value"]
                counted += 1
                if (value != float(model.version)).any():
                    wrong.append((model.version, float(value[0, 0])))

        blessed.bless(run, run / "1")
        clients = [asyncio.create_task(client()) for _ in range(8)]
        for version in ("2", "1", "2", "3"):
            blessed.bless(run, run / version)
            await until(lambda wanted=version: server.models.standing(NAME) == wanted)
        await asyncio.gather(*clients)
        assert counted > 10
        assert not wrong

    follow(scenario, run)
