"""Fitting: whether an engine runs on this machine, why not, and whether one built here would."""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import TargetUnavailable
from pipeline.backends import backend, require, target
from pipeline.values import Engine


@dataclass(frozen=True)
class Misfit:
    """Why an engine does not run here, in one line; `curable` where one that is built here would.

    It is not where the machine lacks what runs any engine of that target.
    """

    why: str
    curable: bool


def misfit(engine: Engine) -> Misfit | None:
    """Why an engine does not run on this machine; None where it does."""
    wanted = target(engine.target)
    try:
        require(wanted)
    except TargetUnavailable as error:
        return Misfit(str(error), curable=False)
    here = host(engine)
    for fact, value in here.items():
        built = engine.built_on.get(fact)
        if built != value:
            why = f"it was built for {fact} {built or 'none'!r}, here is {value!r}"
            return Misfit(f"{engine.target!r}: {why}", curable=True)
    return None


def host(engine: Engine) -> dict[str, str]:
    """What has to be the same where an engine was built and where it runs, as it is here."""
    wanted = target(engine.target)
    tools = backend(wanted)
    bound = tools.bound()
    here = tools.host(wanted) if bound else {}
    return {fact: here.get(fact, "") for fact in bound}
