"""Rebuilding: an engine that was built for another machine, compiled and certified on this one.

It happens in a process of its own, `python -m pipeline.rebuild`, which may load what a server may
not, and whatever it does ends with its budget.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from models.datasets import cache_folder
from models.errors import BuildFailed, CertificateFailed, FucinaError, first_line
from pipeline.artifacts import digest_files, digest_json, new_folder, sweep
from pipeline.backends import backend, target
from pipeline.bundle import Bundle, open_bundle
from pipeline.fitting import host
from pipeline.parts import check, new_part, part, save_value
from pipeline.values import MODEL, Engine, OnnxModel

_GRAPH = "engine.onnx"  # beside an engine, what it was compiled from


def rebuilt_before(bundle: Bundle, name: str, cache: Path | None) -> Bundle | None:
    """The bundle with the engine that was rebuilt here before; None where there is no sound one."""
    with suppress(FucinaError):
        return _adopt(bundle, name, _place(bundle, name, _root(cache)))
    return None


async def rebuild(bundle: Bundle, name: str, cache: Path | None, seconds: float) -> Bundle:
    """The bundle with its engine of a target compiled and certified on this machine.

    It is kept in `cache` (else $XDG_CACHE_HOME/fucina), where only this user may write. Raises
    `BuildFailed`, also when it takes longer than `seconds`, or `CertificateFailed`.
    """
    root = _root(cache)
    place = _place(bundle, name, root)
    # Whatever the process leaves of temporary files goes with this folder.
    with tempfile.TemporaryDirectory(prefix="fucina-") as scratch:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pipeline.attached", __name__),
            *(str(bundle.folder.absolute()), name, str(place)),
            cwd=Path(__file__).parents[1],
            env=os.environ | {"TMPDIR": scratch},
            stdin=asyncio.subprocess.PIPE,  # closed with this process at the latest: it then ends
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                said = await process.stdout.read()
                code = await process.wait()
        except TimeoutError as error:
            raise BuildFailed(
                f"{name!r} cannot be rebuilt in time", expected=f"at most {seconds:g} seconds",
                fix="allow more by --rebuild",
            ) from error  # fmt: skip
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            sweep(root)
    if code:
        why = said.decode(errors="replace").strip().splitlines()
        raise BuildFailed(
            why[-1] if why else f"the rebuild of {name!r} ended with exit code {code}"
        )
    return await asyncio.to_thread(_adopt, bundle, name, place)


def main() -> None:
    """Rebuild the engine of a bundle's target into a folder; what fails is said on stdout."""
    folder, name, place = sys.argv[1:]
    try:
        _make(open_bundle(Path(folder)), name, Path(place))
    except FucinaError as error:
        print(error)
        raise SystemExit(1) from error


def _make(bundle: Bundle, name: str, place: Path) -> None:
    from pipeline.verify import require, verify

    with _alone(place), tempfile.TemporaryDirectory() as scratch:
        with suppress(FucinaError):
            _adopt(bundle, name, place)  # another process was first
            return
        shutil.rmtree(place, ignore_errors=True)
        model, packaged = bundle.unpack(name, Path(scratch) / "bundle")
        certified = Path(scratch) / "certificate"
        certified.mkdir()
        with new_folder(place) as folder:
            require(verify(_compile(model, packaged, folder), model, certified))
            shutil.copytree(certified, folder, dirs_exist_ok=True)


def _compile(model: OnnxModel, packaged: Engine, out: Path) -> Engine:
    """The engine and its parts, from the same graphs, to be opened the same way."""
    wanted = target(packaged.target)
    tools = backend(wanted)
    if _GRAPH in packaged.files:
        built = tools.rebuild(packaged.folder / _GRAPH, model.signature, wanted, out)
    else:
        graph = model.folder / MODEL
        built = tools.build(graph, model.signature, wanted, out, keep=packaged.kept)
    parts = {
        name: _compile(part(model, name), part(packaged, name), new_part(out, name)).digest
        for name in model.parts
    }
    engine = packaged.model_copy(
        update={
            "folder": out,
            "options": {**built.options, **packaged.options},
            "built_on": built.built_on,
            "files": digest_files(out, list(built.files)),
            "parts": parts,
        }
    )
    save_value(engine)
    return engine


def _adopt(bundle: Bundle, name: str, place: Path) -> Bundle:
    """The bundle with the engine in `place`, if it is whole, certified, and of the same graph."""
    here = replace(bundle, rebuilt={**bundle.rebuilt, name: place})
    here.certificate(name)
    engine = here.engine(name)
    check(engine)
    if engine.parent != bundle.engine(name).parent:
        raise CertificateFailed(f"{place} holds an engine of another graph")
    return here


def _place(bundle: Bundle, name: str, root: Path) -> Path:
    """Where the engine lies that stands for the bundle's on machines such as this one."""
    engine = bundle.engine(name)
    facts = {
        "engine": engine.digest, "host": host(engine), "certified by": metadata.version("fucina"),
    }  # fmt: skip
    return root / digest_json(facts)[:32]


def _root(cache: Path | None) -> Path:
    """The folder of rebuilt engines. Raises `BuildFailed` when there can be none."""
    try:
        root = (cache or cache_folder()).absolute() / "engines"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.stat()
    except (OSError, RuntimeError) as error:  # the latter where nobody is at home
        raise BuildFailed(
            "there is no folder for rebuilt engines", got=first_line(error),
            fix="name one that can be written in FUCINA_CACHE",
        ) from error  # fmt: skip
    # A plan is code that runs as whoever opens it.
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise BuildFailed(
            f"others may write into {root}, the folder of rebuilt engines",
            fix="let only its owner write there, or name another in FUCINA_CACHE",
        )
    return root


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Let one process at a time make what is to be in `place`."""
    import fcntl

    with place.with_suffix(".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()
