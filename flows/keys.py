"""The commands `fucina keys add`, `list` and `revoke`: who may ask a server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
# Heavy imports are inside the commands: `fucina --help` answers at once.

_file = click.option(
    "--file", "path", type=click.Path(path_type=Path, dir_okay=False), default=Path("keys.json"),
    show_default=True, help="File of hashed keys, as given to `fucina serve --api-keys`.",
)  # fmt: skip


def register(group: click.Group, as_json_option: Decorator) -> None:
    """Add the commands to `fucina`, with the option that others have."""

    @group.group()
    def keys() -> None:
        """API keys of `fucina serve --api-keys`: add, list, revoke."""

    @keys.command()
    @click.argument("name")
    @_file
    @click.option(
        "--days", type=click.FloatRange(0, 36500, min_open=True), help="Expires after so many."
    )
    @click.option("--model", "models", multiple=True, help="May ask this model only. Repeat.")
    @click.option("--admin", is_flag=True, help="May load and unload models.")
    @as_json_option
    def add(
        name: str, path: Path, days: float | None, models: tuple[str, ...], admin: bool,
        as_json: bool,
    ) -> None:  # fmt: skip
        """Make a key and print it, once: only its hash is kept."""
        from serving.keys import add_key

        expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
        key = add_key(path, name, expires=expires, models=models or None, admin=admin)
        if as_json:
            _print_json({"name": name, "key": key})
        else:
            print(key)

    @keys.command("list")
    @_file
    @as_json_option
    def list_(path: Path, as_json: bool) -> None:
        """Names, dates and permissions; the keys themselves are not known."""
        from serving.keys import read_keys

        known = read_keys(path)
        if as_json:
            shown = [key.model_dump(mode="json", exclude={"sha256"}) for key in known]
            _print_json(
                [one | {"expired": key.expired} for one, key in zip(shown, known, strict=True)]
            )
            return
        for key in known:
            until = f"expires {key.expires:%Y-%m-%d %H:%M}" if key.expires else "does not expire"
            may = "every model" if key.models is None else ", ".join(key.models)
            rights = [f"created {key.created:%Y-%m-%d %H:%M}", until, may]
            rights += ["admin"] if key.admin else []
            print(f"{key.name}: " + "; ".join([*rights, *(["EXPIRED"] if key.expired else [])]))

    @keys.command()
    @click.argument("name")
    @_file
    def revoke(name: str, path: Path) -> None:
        """Take a key back; running servers refuse it from then on."""
        from serving.keys import revoke_key

        revoke_key(path, name)
        print(f"{name} is revoked")


def _print_json(document: object) -> None:
    from flows.output import print_json

    print_json(document)
