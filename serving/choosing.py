"""Choosing: which engine of a bundle answers for the target that was asked for, on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import NotReady
from pipeline.backends import DEFAULT_TARGET
from pipeline.backends import target as find_target
from pipeline.bundle import Bundle
from pipeline.fitting import misfit
from pipeline.rebuild import rebuilt_before
from serving.settings import Settings

# Why another engine answers than the one that was packaged for the target, as labels say it.
REBUILT = "rebuilt"
REBUILDING = "rebuilding"
UNFIT = "unfit"  # built for another machine, and not for this one
UNAVAILABLE = "unavailable"  # no engine of that target runs here


@dataclass(frozen=True)
class Choice:
    """The engine of `target` in `bundle` answers for `requested`; without a target none does yet.

    Where it is not the one that was packaged, `reason` says why in a word and `why` in a sentence.
    """

    bundle: Bundle
    requested: str
    target: str
    reason: str = ""
    why: str = ""

    @property
    def labels(self) -> tuple[str, str, str]:
        return self.target or self.requested, self.requested, self.reason


def choose(bundle: Bundle, settings: Settings) -> Choice:
    """What answers for the target that the settings ask for; it has not been opened.

    That is its engine where it fits this machine, else one that was rebuilt here before, else a
    certified one of ONNX Runtime in fp32, unless the settings are strict. Raises `NotReady` where
    nothing can answer, now or once it is rebuilt.
    """
    name = settings.target
    problem = misfit(bundle.engine(name))
    if problem is None:
        return (
            rebuilt_choice(bundle, name) if name in bundle.rebuilt else Choice(bundle, name, name)
        )
    curable = problem.curable and settings.rebuild > 0
    if curable and (here := rebuilt_before(bundle, name, settings.cache)):
        return rebuilt_choice(here, name)
    reason = REBUILDING if curable else UNFIT if problem.curable else UNAVAILABLE
    other = None if settings.strict_target else _stand_in(bundle, name)
    if other is None and not curable:
        raise NotReady(refusal(bundle, name, problem.why))
    return Choice(bundle, name, other or "", reason, problem.why)


def rebuilt_choice(bundle: Bundle, name: str) -> Choice:
    """An engine that was built on this machine."""
    return Choice(bundle, name, name, REBUILT, "built and certified on this machine")


def refusal(bundle: Bundle, name: str, why: str) -> str:
    """That a model is not served, and why."""
    return f"model {bundle.manifest.name!r} is not served by {name!r}, and by nothing else: {why}"


def _stand_in(bundle: Bundle, name: str) -> str | None:
    """An engine of the usual library in fp32 that runs here, of the same device first."""
    wanted, usual = find_target(name), find_target(DEFAULT_TARGET)
    others = [find_target(other) for other in bundle.manifest.engines]
    fit = [
        other.name
        for other in sorted(others, key=lambda other: other.device != wanted.device)
        if (other.library, other.precision) == (usual.library, usual.precision)
        and misfit(bundle.engine(other.name)) is None
    ]
    return fit[0] if fit else None
