"""Checks of images: really built without an engine, run as they are deployed, and asked."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.checking import DEPLOY, Missing, Wrong, program, run

LARGEST = 600_000_000  # bytes of the serving image on the CPU, beyond its base
RECIPE = "lenet5"
EPOCHS, FLOOR = 3, "0.9"  # enough to be released; what is checked is not how well it learns
BUILDING = 3600.0  # seconds
PATIENCE = 240.0
_BASE = "localhost/fucina-check-base"
_PACKAGES = "python3,python3-venv,ca-certificates"
_SUITE = "bookworm"
_HARDENED = (
    "--read-only", "--tmpfs", "/tmp", "--cap-drop", "all",
    "--security-opt", "no-new-privileges",
    # An engine's own limits may be above what a machine without one allows.
    "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000",
)  # fmt: skip

# Within a container, so that who asks is of the code that answers.
ASK = """
import sys
from pathlib import Path
from pipeline.bundle import open_bundle
from serving.ask import ask
bundle = open_bundle(Path(sys.argv[1]))
for transport, findings in ask(sys.argv[2], sys.argv[3], bundle, sys.argv[4]).items():
    assert findings, "nothing was compared"
    assert all(finding.passed for finding in findings), findings
    print(len(findings), "recorded answers over", transport)
"""
_ABSENT = "import importlib.util as u; print([n for n in {!r} if u.find_spec(n)])"
# User 10001 may write to these two folders; it is the mount that must refuse.
_WRITES = (
    "sh",
    "-c",
    "for f in /runs /prefect; do touch $f/x 2>/dev/null && echo writable; done; :",
)
_NEVER = ("torch", "onnx", "prefect", "sklearn", "matplotlib", "gymnasium")


@dataclass(frozen=True)
class Engine:
    """Images and containers in a folder of their own, and what a build is given to see."""

    folder: Path
    base: str | None = None
    volumes: tuple[str, ...] = ()  # SOURCE:PLACE:ro, mounted while an image is built
    arguments: tuple[str, ...] = ()  # NAME=VALUE of a Dockerfile

    @property
    def storage(self) -> tuple[str, ...]:
        # No driver is named: overlay where the kernel has it; vfs would copy an image a container.
        return ("--root", str(self.folder / "root"), "--runroot", str(self.folder / "run"))

    def buildah(self, *command: str, seconds: float = BUILDING) -> str:
        return run(program("buildah"), *self.storage, *command, seconds=seconds)

    def podman(self, *command: str, seconds: float = PATIENCE) -> str:
        return run(*self.podman_command, *command, seconds=seconds)

    @property
    def podman_command(self) -> tuple[str, ...]:
        runtime = ("--runtime", program("runc"), "--cgroup-manager", "cgroupfs")
        return (program("podman"), *self.storage, *runtime)

    def clear(self) -> None:
        """End and remove every container and volume in the folder, however a check ended."""
        with suppress(Missing):
            self.podman("rm", "--all", "--force", "--time", "5")
            self.podman("volume", "prune", "--force")
            self.buildah("rm", "--all")  # of a build that failed; it would stay mounted

    def base_image(self) -> str:
        """The base that was given, else one of Debian's packages; made once for a folder."""
        if self.base:
            return self.base
        if _BASE not in self.buildah("images", "--format", "{{.Name}}"):
            tree = self.folder / "base"
            shutil.rmtree(tree, ignore_errors=True)
            made = (program("debootstrap"), "--variant=minbase", f"--include={_PACKAGES}")
            run(*made, _SUITE, tree, seconds=BUILDING)
            container = self.buildah("from", "scratch").strip()
            self.buildah("add", "--quiet", container, str(tree), "/")
            self.buildah("commit", "--quiet", "--format", "docker", "--rm", container, _BASE)
            shutil.rmtree(tree)
        return _BASE

    def image(self, target: str) -> str:
        """The name of what was built."""
        return f"localhost/fucina-check:{target}"

    def build(self, target: str, dockerfile: Path = DEPLOY / "Dockerfile") -> str:
        """Build a target and return the image's name."""
        image = self.image(target)
        given = [f"BASE={self.base_image()}", *self.arguments]
        self.buildah(
            "bud", "--isolation", "chroot", "--format", "docker", "--layers", "--quiet",
            "--target", target, "--tag", image, "--file", str(dockerfile),
            *(part for one in given for part in ("--build-arg", one)),
            *(part for one in self.volumes for part in ("--volume", one)),
            str(DEPLOY.parent),
        )  # fmt: skip
        return image

    def size(self, image: str) -> int:
        """Bytes of an image and of all below it."""
        return json.loads(self.podman("image", "inspect", image))[0]["Size"]

    @contextmanager
    def running(self, image: str, *command: str, options: tuple[str, ...] = ()) -> Iterator[str]:
        """A hardened container that no network reaches, gone after the block."""
        started = self.podman("run", "--detach", "--network", "none", *_HARDENED, *options,
            image, *command).split()  # fmt: skip
        try:
            yield started[-1]
        finally:
            with suppress(Wrong):
                self.podman("stop", "--time", "30", started[-1])
            self.podman("rm", "--force", started[-1])


def size(engine: Engine, target: str, largest: float = float("inf")) -> str:
    """Build a target, and say how large it is; raises `Wrong` beyond `largest` bytes."""
    beyond = engine.size(engine.build(target)) - engine.size(engine.base_image())
    if beyond > largest:
        raise Wrong(f"{beyond / 1e6:.0f} MB beyond its base, {largest / 1e6:.0f} are allowed")
    return f"{beyond / 1e6:.0f} MB beyond its base"


def answers(engine: Engine, runs: Path) -> str:
    """Serve a released bundle as it is deployed, and ask every recorded case over REST and gRPC."""
    image = engine.image("cpu")
    options = ("--volume", f"{runs}:/runs:ro")
    with engine.running(image, "serve", "--out", "/runs", RECIPE, options=options) as container:

        def inside(*command: str) -> str:
            return engine.podman("exec", container, *command)

        wait(lambda: engine.podman("healthcheck", "run", container))
        if inside("id", "-u").strip() != "10001":
            raise Wrong("it does not run as user 10001")
        if inside("python3", "-c", _ABSENT.format(_NEVER)).strip() != "[]":
            raise Wrong("it holds what only trains")
        if "writable" in inside(*_WRITES):
            raise Wrong("its root or its bundles can be written to")
        where = (f"/runs/{RECIPE}/bundle", "http://127.0.0.1:3000", "127.0.0.1:3001")
        said = inside("python3", "-c", ASK, *where, "ort-cpu-fp32")
    return f"as user 10001, root read-only: {', '.join(said.strip().splitlines())}"


def release(engine: Engine, runs: Path) -> str:
    """Train, certify and package in the image for it, with a read-only root, into `runs`."""
    image = engine.image("train")
    runs.mkdir(parents=True, exist_ok=True)
    runs.chmod(0o777)
    engine.podman(
        "run", "--rm", "--network", "none", *_HARDENED, "--env", "PREFECT_HOME=/tmp/prefect",
        "--env", "OMP_NUM_THREADS=1", "--volume", f"{runs}:/runs",
        image, "run", RECIPE, "--out", "/runs",
        "--set", f"epochs={EPOCHS}", "--set", f"floor={FLOOR}", seconds=BUILDING,
    )  # fmt: skip
    return f"{RECIPE} went from data to a certified bundle in it"


def wait(asked: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Ask until it is no longer `Wrong`, which is raised after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        try:
            asked()
        except Wrong:
            if time.monotonic() > until:
                raise
            time.sleep(1)
        else:
            return
