"""Bento: what the command `fucina package` ends in, which serves one bundle.

runs/NAME/bentos/VERSION/   the Bento; `bentoml serve` takes this folder
runs/NAME/bento             a link to the last one
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.distribution import Package, packages, write_wheel
from models.errors import BuildFailed, ServingFailed
from pipeline.artifacts import digest_file, digest_json, new_folder, point
from pipeline.backends import backend_module, target
from pipeline.bundle import SERVICES, Bundle
from pipeline.package import CARD

BENTOS = "bentos"
LAST_BENTO = "bento"
# Of the Python that the pins are for. Another, such as one with a digest, by --base-image.
BASE_IMAGE = f"python:{platform.python_version()}-slim-bookworm"
# Where in the context lies what is not of the bundle. BentoML refuses hidden folders.
_BUILD = "to-build"
_LARGEST = 10

# BentoML's own Dockerfile leaves compilers in the image and the base unpinned, does not expose the
# gRPC port, checks no health, and gives the service's user the code to write to. Of a template it
# would keep the parts that are not replaced, so this replaces all of it.
_DOCKERFILE = """\
FROM {{ __base_image__ }} AS packages
WORKDIR /packages
COPY env/python/requirements.txt ./
COPY env/python/wheels ./wheels
RUN python -m venv /opt/venv && \\
    /opt/venv/bin/pip install --no-cache-dir --only-binary :all: -r requirements.txt wheels/*.whl

FROM {{ __base_image__ }}
RUN useradd --uid {{ bento__uid_gid }} --create-home {{ bento__user }}
COPY --from=packages /opt/venv /opt/venv
COPY . {{ bento__path }}
ENV PATH=/opt/venv/bin:$PATH \\
    PYTHONUNBUFFERED=1 \\
    BENTOML_CONTAINERIZED=true \\
    BENTOML_DO_NOT_TRACK=True \\
    BENTOML_HOME=/tmp/bentoml
WORKDIR {{ bento__path }}
USER {{ bento__uid_gid }}
EXPOSE 3000 3001
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["python", "-c", \\
    "import urllib.request as r; r.urlopen('http://127.0.0.1:3000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["bentoml", "serve", "{{ bento__path }}"]
"""


@dataclass(frozen=True)
class Bento:
    """A built Bento: the folder that `bentoml serve` takes, and what its environment is made of."""

    tag: str
    folder: Path
    packages: tuple[Package, ...]

    def describe(self) -> dict[str, Any]:
        """Its place and its bytes, and those of its packages where they are installed."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        largest = sorted(self.packages, key=lambda one: one.bytes or 0, reverse=True)[:_LARGEST]
        return {
            "tag": self.tag,
            "path": str(self.folder),
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
            "installed_packages": len(self.packages),
            "installed_bytes": sum(package.bytes or 0 for package in self.packages),
            "largest": {one.name: one.bytes for one in largest if one.bytes},
            "packages": [package.requirement for package in self.packages],
            "not_pinned": [one.name for one in self.packages if one.bytes is None],
        }


def packaged(bundle: Bundle, run: Path, base_image: str | None) -> dict[str, Any]:
    """What `fucina package` says of the Bento it built; nothing where none can be built."""
    if find_spec("bentoml") is None:
        print(
            "fucina: no Bento is built, for it needs the package 'bentoml': got not installed; "
            "pip install 'fucina[serve]', or use --no-bento",
            file=sys.stderr,
        )
        return {}
    return {"bento": build_bento(bundle, run, base_image or BASE_IMAGE).describe()}


def build_bento(bundle: Bundle, run: Path, base_image: str = BASE_IMAGE) -> Bento:
    """Build what serves a bundle, or take the Bento that is there, under the run folder `run`.

    The same bundle, code, packages and base image give the same tag. Raises `ServingFailed` for a
    kind that no service serves, and `BuildFailed` with what BentoML said.
    """
    manifest = bundle.manifest
    if manifest.kind not in SERVICES:
        raise ServingFailed(
            f"bundle {manifest.name!r} is of a kind that no service serves yet",
            got=manifest.kind, expected=" or ".join(SERVICES),
        )  # fmt: skip
    service = SERVICES[manifest.kind]
    targets = [target(name) for name in manifest.engines]
    needed = packages(extras(one.device for one in targets))
    modules = [service.partition(":")[0], *map(backend_module, targets)]
    # BentoML's tags are of lower case.
    name = manifest.name.lower()
    with tempfile.TemporaryDirectory(prefix="fucina-") as scratch:
        parts = Path(scratch) / _BUILD
        parts.mkdir()
        wheel = write_wheel(modules, needed, parts)
        # BentoML itself adds its own version.
        lines = [f"{one.requirement}\n" for one in needed if one.name != "bentoml"]
        (parts / "requirements.txt").write_text("".join(lines))
        (parts / "Dockerfile.template").write_text(_DOCKERFILE)
        options = _options(bundle, service, name, wheel.name, base_image)
        # JSON is YAML.
        (parts / "bentofile.yaml").write_text(json.dumps(options, indent=2))
        files = {path.name: digest_file(path) for path in parts.iterdir()}
        everything = digest_json([bundle.digest, [one.requirement for one in needed], files])
        version = f"{manifest.version}-{everything[:8]}"
        folder = run / BENTOS / version
        if not (folder / "bento.yaml").is_file():
            context = shutil.copytree(bundle.folder, Path(scratch) / "context")
            shutil.move(parts, context)
            built = _build(context, version, Path(scratch) / "home", wheel.name)
            with new_folder(folder) as out:
                shutil.copytree(built / name / version, out, dirs_exist_ok=True)
    point(run / LAST_BENTO, folder)
    return Bento(f"{name}:{version}", folder, tuple(needed))


def extras(devices: Iterable[str]) -> tuple[str, str]:
    """The extras of `fucina` that serve engines of these devices."""
    return ("cpu" if set(devices) == {"cpu"} else "gpu", "serve")


def _options(
    bundle: Bundle, service: str, name: str, wheel: str, base_image: str
) -> dict[str, Any]:
    """BentoML's `bentofile.yaml`, for a context that holds the bundle and what is to build it."""
    return {
        "service": service,
        "name": name,
        "description": f"file: {CARD}" if (bundle.folder / CARD).is_file() else name,
        "include": ["**"],
        "exclude": [f"{_BUILD}/"],
        "python": {
            "requirements_txt": f"{_BUILD}/requirements.txt",
            "wheels": [f"{_BUILD}/{wheel}"],
            "lock_packages": False,
        },
        "docker": {
            "base_image": base_image,
            "dockerfile_template": f"{_BUILD}/Dockerfile.template",
        },
    }


def _build(context: Path, version: str, home: Path, wheel: str) -> Path:
    """The folder of Bentos that BentoML built, of the code in the wheel and not what is here."""
    code = home / "code"
    shutil.unpack_archive(context / _BUILD / wheel, code, "zip")
    # In a process of its own: BentoML keeps state from one build to the next.
    command = [sys.executable, "-m", "bentoml", "build", ".", "--version", version]
    built = subprocess.run(
        [*command, "--bentofile", f"{_BUILD}/bentofile.yaml"],
        env=os.environ
        | {"PYTHONPATH": str(code), "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"},
        cwd=context,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        said = (built.stderr.strip() or built.stdout.strip() or "nothing").splitlines()
        problem = next((line for line in reversed(said) if "Error" in line), said[-1])
        raise BuildFailed("BentoML did not build the Bento", got=problem)
    return home / "bentos"
