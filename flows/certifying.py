"""The command `fucina certify`: a model trained elsewhere, or a bundle on another machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.errors import CertificateFailed

if TYPE_CHECKING:
    from flows.replaying import Replayed
    from models.signature import Signature
    from pipeline.values import Certificate

# Heavy imports are inside the commands: `fucina --help` answers at once.

_PAGE = "certificate.html"
Ranges = dict[str, tuple[int, int, int]]


def register(group: click.Group) -> None:
    """Add the command to `fucina`."""

    @group.command()
    @click.argument("subject", metavar="MODEL.onnx|BUNDLE", type=click.Path(True, path_type=Path))
    @click.option(
        "--against", metavar="MODULE:CALLABLE",
        help="The torch module that MODEL.onnx was made of, or what returns it.",
    )  # fmt: skip
    @click.option(
        "--samples", type=click.Path(True, dir_okay=False, path_type=Path), metavar="ROWS.npz",
        help="Real rows: an array for each input, the row axis first.",
    )  # fmt: skip
    @click.option(
        "--max-batch", type=click.IntRange(1), default=64, show_default=True,
        help="The most rows that MODEL.onnx is certified for.",
    )  # fmt: skip
    @click.option(
        "--axis", "ranges", multiple=True, metavar="NAME=MIN:OPT:MAX", callback=_ranges,
        help="The sizes of an open dimension of MODEL.onnx, or NAME=SIZE. Repeat.",
    )  # fmt: skip
    @click.option("--no-serve", is_flag=True, help="Do not start the service of BUNDLE.")
    @click.option(
        "--out", type=click.Path(path_type=Path, file_okay=False),
        help="Folder of the certificate.  [default: beside it, .certificate]",
    )  # fmt: skip
    @click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
    def certify(
        subject: Path, against: str | None, samples: Path | None, max_batch: int, ranges: Ranges,
        no_serve: bool, out: Path | None, as_json: bool,
    ) -> None:  # fmt: skip
        """Certify MODEL.onnx against its torch module, or replay BUNDLE on this machine.

        Exit code 0: passed; 1: failed, and one line says where.
        """
        if subject.is_dir():
            if against or samples or ranges:
                raise click.UsageError("--against, --samples and --axis are for a MODEL.onnx")
            _replay(subject, out or subject.with_name(f"{subject.name}.certificate"),
                    not no_serve, as_json)  # fmt: skip
            return
        if not against or ":" not in against:
            raise click.UsageError("MODEL.onnx is certified --against MODULE:CALLABLE")
        out = out or subject.with_suffix(".certificate")
        _certify(subject, against, samples, max_batch, ranges, out, as_json)


def _ranges(_context: object, _option: object, values: tuple[str, ...]) -> Ranges:
    found: Ranges = {}
    for value in values:
        name, _, text = value.partition("=")
        sizes = [int(size) if size.isdigit() else 0 for size in text.split(":")]
        low, usual, high = sizes * 3 if len(sizes) == 1 else [*sizes, 0, 0, 0][:3]
        if not name or len(sizes) > 3 or not 1 <= low <= usual <= high:
            raise click.BadParameter(f"{value!r} is not NAME=MIN:OPT:MAX, nor NAME=SIZE")
        found[name] = (low, usual, high)
    return found


def _certify(
    path: Path, against: str, samples: Path | None, max_batch: int, ranges: Ranges, out: Path,
    as_json: bool,
) -> None:  # fmt: skip
    from flows import output
    from flows.foreign import certify
    from flows.replaying import fresh

    with fresh(out) as folder:
        value, signature = certify(path, against, samples, max_batch, ranges, folder, _show)
        page = _write_page(value, signature, folder / _PAGE)
    value = value.model_copy(update={"folder": out})
    if as_json:
        output.print_json(
            {
                "name": value.recipe,
                "signature": signature.to_json(),
                "samples": value.samples,
                "page": str(out / _PAGE) if page else None,
                **output.describe_certificate(value),
            }
        )
    else:
        print(f"samples: {value.samples['origin']}\n")
        output.print_certificates([value])
        print(f"  {out / _PAGE}" if page else f"  {_PAGE}: not written, see above")
    _require(value)


def _show(signature: Signature) -> None:
    print("signature, as the file and the samples give it:", file=sys.stderr)
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            print(f"  {kind:6} {spec.name}: {spec}", file=sys.stderr)
    sys.stderr.flush()


def _write_page(certificate: Certificate, signature: Signature, path: Path) -> bool:
    """Whether the page could be written: it needs what draws plots and fills templates."""
    try:
        from pipeline.report_certificate import write_certificate
    except ModuleNotFoundError as error:
        print(
            f"fucina: {path.name} is not written: it needs the package {error.name!r}; "
            "pip install 'fucina[report]'",
            file=sys.stderr,
        )
        return False
    write_certificate(certificate, signature, path)
    return True


def _require(certificate: Certificate) -> None:
    """Raise `CertificateFailed` with what says most of the failure, and where it begins."""
    from pipeline.certificate_text import located, telling

    if certificate:
        return
    where = f"; {located(certificate.diagnosis)}" if certificate.diagnosis else ""
    raise CertificateFailed(
        f"{certificate.recipe} on {certificate.label} is not certified: "
        f"{telling(certificate) or 'it records a comparison that failed'}{where}",
        fix=f"see {certificate.folder}",
    )


def _replay(folder: Path, out: Path, serve: bool, as_json: bool) -> None:
    from flows import output
    from flows.replaying import replay
    from pipeline.bundle import open_bundle

    bundle = open_bundle(folder)
    done = replay(bundle, out, serve=serve)
    for one in done:
        if not one.here.part:
            _write_page(one.here, bundle.manifest.signature, one.here.folder / _PAGE)
    if as_json:
        manifest = bundle.manifest
        output.print_json(
            {
                "name": manifest.name,
                "version": manifest.version,
                "agrees": all(bool(one.here) == bool(one.packaged) for one in done),
                "engines": [_describe(one) for one in done],
            }
        )
    else:
        for one in done:
            print("\n".join(_compared(one)))
        print(f"\n{out}")
    for one in done:
        _require(one.here)


def _describe(one: Replayed) -> dict[str, Any]:
    from flows.output import describe_certificate, rounded

    return {
        **describe_certificate(one.here),
        "part": one.here.part,
        "agrees": bool(one.here) == bool(one.packaged),
        "packaged": {
            "passed": bool(one.packaged),
            "digest": one.packaged.digest,
            "drift": [drift.model_dump(mode="json") for drift in one.packaged.drift],
        },
        "error_over_limit": {
            check: {"packaged": rounded(packaged), "here": rounded(here)}
            for check, packaged, here in _by_check(one)
        },
    }


def _compared(one: Replayed) -> Iterator[str]:
    """How a certificate that was made here stands beside the packaged one."""
    from pipeline.certificate_text import budget_words, drift_words, located
    from pipeline.wording import times

    here = one.here
    verdict = "passed here as well" if here else "FAILED here, though it was packaged as passed"
    yield f"{here.recipe} on {here.label}: {verdict}; worst error / limit, packaged and here:"
    known = {finding.check for finding in one.packaged.findings}
    for check, packaged, now in _by_check(one):
        yield f"  {check:<10} {times(packaged) if check in known else '-':>12} {times(now):>12}"
    yield from (f"  budget     {text}" for text in budget_words(here.budget))
    for drift in here.drift or one.packaged.drift:
        yield f"  drift      {'here' if here.drift else 'when packaged'}: {drift_words(drift)}"
    yield from (f"  failure    {text}" for text in here.failures)
    if here.diagnosis:
        yield f"  located    {located(here.diagnosis)}"
    yield from (f"  not run    {text}" for text in here.not_run)


def _by_check(one: Replayed) -> Iterator[tuple[str, float | None, float | None]]:
    """Of each check the worst error over its limit, as packaged and here; None: not a number."""
    from pipeline.compare import worst_ratio

    sides = (one.packaged.findings, one.here.findings)
    for check in dict.fromkeys(finding.check for side in sides for finding in side):
        packaged, here = (worst_ratio(f for f in side if f.check == check) for side in sides)
        yield check, packaged, here
