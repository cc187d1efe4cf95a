"""The commands `fucina push` and `pull`: bundles and runs at any address, checked on arrival."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from flows.operating import run_folder

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
# Heavy imports are inside the commands: `fucina --help` answers at once.


def register(group: click.Group, out_option: Decorator, as_json_option: Decorator) -> None:
    """Add the commands to `fucina`, with the options that others have."""

    @group.command()
    @click.argument("name", metavar="NAME_OR_FOLDER")
    @click.argument("address", metavar="URL")
    @out_option
    @as_json_option
    def push(name: str, address: str, out: Path, as_json: bool) -> None:
        """Copy a bundle, a NAME's blessed or last one, or a run's folder, to URL.

        What is at URL already is not sent again; nobody sees a part of it as a whole.
        """
        from pipeline.storage import push

        _told("push", lambda progress: push(_folder(name, out), address, progress), as_json)

    @group.command()
    @click.argument("address", metavar="URL")
    @click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
    @as_json_option
    def pull(address: str, folder: Path, as_json: bool) -> None:
        """Copy what was pushed to URL into the new folder OUT; goes on where it was interrupted."""
        from pipeline.storage import pull

        _told("pull", lambda progress: pull(address, folder, progress), as_json)


def _folder(name: str, out: Path) -> Path:
    """The folder of that name, or of a recipe's bundle that is served."""
    from pipeline.blessed import standing

    if "/" in name or Path(name).is_dir():
        return Path(name)
    return standing(run_folder(name, out)).bundle.folder


def _told(verb: str, move: Callable[..., object], as_json: bool) -> None:
    from flows import output
    from flows.console import listener, shown

    with shown():
        moved = move(listener.get()("", verb))
    document = vars(moved)
    output.print_json(document) if as_json else output.print_facts(document)
