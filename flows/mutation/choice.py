"""Which recipes show what the zoo holds: of each kind few and shallow ones, by a rule."""

from __future__ import annotations

from dataclasses import dataclass

from models.recipe import Recipe
from models.zoo import ZOO

DATA = "embedded"


@dataclass(frozen=True)
class Candidate:
    """A recipe as it is trained on embedded data: its kinds of layers, and how many there are."""

    name: str
    kind: str
    layers: frozenset[str]
    depth: int


def cover() -> list[str]:
    """Recipes that hold every kind of layer of every kind of recipe."""
    candidates = [_candidate(recipe) for recipe in ZOO.values() if DATA in recipe.data]
    return chosen(candidates)


def chosen(candidates: list[Candidate]) -> list[str]:
    """Of each kind, the shallowest first, those with a layer that none before had.

    Then, the deepest first, those are left out whose layers the others hold too.
    """
    found: list[str] = []
    for kind in dict.fromkeys(c.kind for c in candidates):
        taken: list[Candidate] = []
        of_kind = (c for c in candidates if c.kind == kind)
        for candidate in sorted(of_kind, key=lambda c: (c.depth, c.name)):
            if not candidate.layers <= _layers(taken):
                taken.append(candidate)
        for candidate in reversed(taken[:]):
            others = [c for c in taken if c is not candidate]
            if candidate.layers <= _layers(others):
                taken = others
        found += [c.name for c in taken]
    return found


def _layers(candidates: list[Candidate]) -> frozenset[str]:
    return frozenset().union(*(c.layers for c in candidates))


def _candidate(recipe: Recipe) -> Candidate:
    import torch

    with torch.device("meta"):  # spares the values of the parameters
        module = recipe.on(DATA).build()
    leaves = [type(m).__name__ for m in module.modules() if not list(m.children())]
    return Candidate(recipe.name, recipe.kind, frozenset(leaves), len(leaves))
