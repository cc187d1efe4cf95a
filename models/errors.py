"""Every error that Fucina raises on purpose.

FucinaError                 one line: what, got, expected, how to fix it (exit code 1)
├── BadSetting              a setting's name or value is refused, before any work
├── UnknownRecipe           neither a zoo name nor an importable MODULE:RECIPE
├── MissingArtifact         an earlier stage has not been run in this folder
├── DataUnavailable         a data file is neither here nor reachable
│   └── DataCorrupt         a data file is here and its digest is wrong
├── TrainingFailed          the loss is no longer finite
│   └── FloorMissed         trained, but below the recipe's metric floor
├── ExportFailed            the graph is not what the signature promises
├── BuildFailed             the engine's compiler refused the graph
│   └── TargetUnavailable   this machine or version has no such target
├── CertificateFailed       an engine does not reproduce its module
├── BundleError             a bundle cannot be opened
│   ├── NotABundle          no manifest, or one that does not parse
│   ├── NewerSchema         written by a newer Fucina
│   ├── MissingFile         a file of the manifest is gone
│   └── TamperedFile        a file's digest is not the manifest's
├── ServingFailed           the server did not start or did not answer
└── RequestError            answered to a client, never a reason to stop
    ├── BadInput            400, INVALID_ARGUMENT
    │   └── TooLarge        413, INVALID_ARGUMENT
    ├── Unauthenticated     401, UNAUTHENTICATED
    ├── Forbidden           403, PERMISSION_DENIED
    ├── UnknownModel        404, NOT_FOUND
    ├── WrongMediaType      415, INVALID_ARGUMENT
    ├── TooMany             429, RESOURCE_EXHAUSTED: of one client at a time
    ├── Unsupported         501, UNIMPLEMENTED
    ├── NotReady            503, UNAVAILABLE
    ├── Overloaded          503, RESOURCE_EXHAUSTED
    └── TimedOut            504, DEADLINE_EXCEEDED
"""

from __future__ import annotations


class FucinaError(Exception):
    """One line that says what is wrong, what was got, what was expected and how to fix it."""

    def __init__(
        self, what: str, *, got: object = None, expected: object = None, fix: str | None = None
    ) -> None:
        self.what = what
        self.got = got
        self.expected = expected
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        line = self.what
        if self.got is not None:
            line += f": got {self.got}"
        if self.expected is not None:
            line += f"{', ' if self.got is not None else ': '}expected {self.expected}"
        if self.fix:
            line += f"; {self.fix}"
        return " ".join(line.split())


def first_line(error: BaseException) -> str:
    """What somebody else's error says in one line of at most 300 characters, or else its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class BadSetting(FucinaError): ...


class UnknownRecipe(FucinaError): ...


class MissingArtifact(FucinaError): ...


class DataUnavailable(FucinaError): ...


class DataCorrupt(DataUnavailable): ...


class TrainingFailed(FucinaError): ...


class FloorMissed(TrainingFailed): ...


class ExportFailed(FucinaError): ...


class BuildFailed(FucinaError): ...


class TargetUnavailable(BuildFailed): ...


class CertificateFailed(FucinaError): ...


class BundleError(FucinaError): ...


class NotABundle(BundleError): ...


class NewerSchema(BundleError): ...


class MissingFile(BundleError): ...


class TamperedFile(BundleError): ...


class ServingFailed(FucinaError): ...


class RequestError(FucinaError): ...


class BadInput(RequestError): ...


class TooLarge(BadInput): ...


class Unauthenticated(RequestError): ...


class Forbidden(RequestError): ...


class UnknownModel(RequestError): ...


class WrongMediaType(RequestError): ...


class TooMany(RequestError): ...


class Unsupported(RequestError): ...


class NotReady(RequestError): ...


class Overloaded(RequestError): ...


class TimedOut(RequestError): ...
