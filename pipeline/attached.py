"""Run a module as a child that cannot outlive its parent: `python -m pipeline.attached MODULE ...`.

The parent holds the other end of standard input. When that closes, at the latest because the parent
was killed, the child gets SIGTERM.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Run the module named first with the arguments after it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    # Not sys.stdin, whose lock a thread that waits would hold while the interpreter ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
