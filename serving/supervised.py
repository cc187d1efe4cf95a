"""BentoML's command line, whose supervisor looks every second, not every ten, for dead workers."""

from __future__ import annotations

import runpy
from functools import partial

from bentoml._internal.utils import circus

_SECONDS = 1.0


def main() -> None:
    """Run `bentoml` with the arguments that were given."""
    # BentoML takes no such option; it looks this function up when it starts a server.
    circus.create_standalone_arbiter = partial(
        circus.create_standalone_arbiter, check_delay=_SECONDS
    )
    runpy.run_module("bentoml", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
