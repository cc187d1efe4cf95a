"""The zoo: every recipe by name, and recipes of modules outside this repository."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from models.errors import UnknownRecipe
from models.lenet5 import LENET5
from models.mlp import MLP_784_512_10
from models.recipe import Recipe

ZOO: dict[str, Recipe] = {recipe.name: recipe for recipe in (MLP_784_512_10, LENET5)}


def find(reference: str) -> Recipe:
    """The recipe of a zoo name, or of `package.module:RECIPE` importable from here.

    Raises `UnknownRecipe`.
    """
    if ":" not in reference:
        if reference in ZOO:
            return ZOO[reference]
        raise UnknownRecipe(
            f"no recipe {reference!r}",
            expected=f"{', '.join(ZOO)} or package.module:RECIPE",
            fix="see `fucina list`",
        )
    module_name, _, attribute = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` would have it
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UnknownRecipe(
            f"cannot import {module_name!r} of recipe {reference!r}",
            got=str(error),
            fix="run where the module lies, or put its folder on PYTHONPATH",
        ) from error
    recipe = getattr(module, attribute, None)
    if not isinstance(recipe, Recipe):
        raise UnknownRecipe(
            f"{reference!r} is not a recipe",
            got=type(recipe).__name__ if recipe is not None else f"no {attribute!r} in the module",
            expected="a models.recipe.Recipe",
        )
    return recipe
