"""What commands print: one JSON document, or tables for a person."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table

from models.recipe import Recipe
from pipeline.blessed import LAST, fold, read_record
from pipeline.bundle import Bundle
from pipeline.certificate_text import certificate_text, operators, worst_findings
from pipeline.compare import worst_ratio
from pipeline.parts import part
from pipeline.values import CERTIFICATE_VALUE, Certificate, Engine, OnnxModel, TrainedModel

if TYPE_CHECKING:  # these bring torch along, which `fucina serve` does without
    from flows.stages import Job, Parts
    from models.layers import Inspection


def program() -> str:
    """What to type to run this program again: `fucina` where it is on the path, else its file."""
    paths = (sys.argv[0], os.path.relpath(sys.argv[0]))
    return "fucina" if shutil.which("fucina") else min(paths, key=len)


def print_json(document: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=2, allow_nan=False))


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """A row of `fucina list`."""
    return {
        "name": recipe.name,
        "kind": recipe.kind,
        "title": recipe.title,
        "paper": recipe.paper,
        "parameters": _parameters(recipe),
        "data": list(recipe.data),
        "metric": recipe.metric,
        "floor": dict(recipe.floor),
    }


def _parameters(recipe: Recipe) -> int:
    """How many parameters the recipe has as published; the meta device spares their values."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in recipe.build().parameters())


def describe_bundle(job: Job, bundle: Bundle) -> dict[str, Any]:
    """What `fucina run` says of one recipe that went all the way."""
    from flows.stages import read_refusals

    manifest = bundle.manifest
    graphs = {"": bundle, **bundle.parts}
    history, _ = fold(read_record(job.folder))
    certificates = {
        (part, target): graph.certificate(target)
        for part, graph in graphs.items()
        for target in manifest.engines
    }
    return {
        "name": manifest.name,
        "kind": manifest.kind,
        "data": manifest.data["name"],
        "metric": job.recipe.metric,
        "metrics": manifest.metrics,
        "intervals": manifest.intervals,
        "remarks": list(manifest.remarks),
        "floor": job.recipe.floor[job.data],
        "certificate": {
            "passed": all(bool(certificate) for certificate in certificates.values()),
            "worst_error_over_limit": rounded(
                worst_ratio(f for c in certificates.values() for f in c.findings)
            ),
        },
        "engines": [
            {
                "target": target,
                **({"part": part} if part else {}),
                "path": str(graphs[part].engine(target).folder),
                "files": graphs[part].engine(target).files,
                "certificate": certificate.digest,
                "passed": certificate.passed,
                "comparisons": len(certificate.findings),
            }
            for (part, target), certificate in certificates.items()
        ],
        "refused": {one.target: one.why for one in read_refusals(job.folder)},
        "bundle": str(job.folder / LAST),
        "version": manifest.version,
        "digest": bundle.digest,
        "blessed": history[-1].version if history else None,
    }


def describe_stage(job: Job, parts: Parts) -> dict[str, Any]:
    """What a single stage's command says of what it made last."""
    from flows.stages import read_candidates

    facts: dict[str, Any] = {"name": job.recipe.name}
    if parts.bundle:
        return facts | describe_bundle(job, parts.bundle)
    if parts.certificates:
        rows = [describe_certificate(certificate) for certificate in parts.certificates]
        return facts | {"certificates": rows}
    if parts.engines:
        rows = [
            {
                "target": engine.target,
                "options": engine.options,
                "kept_in_fp32": list(engine.kept),
                "candidates": [c.model_dump(mode="json") for c in read_candidates(engine.folder)],
                **_place(engine),
            }
            for engine in parts.engines
        ]
        refused = {refusal.target: refusal.why for refusal in parts.refusals}
        return facts | {"engines": rows} | ({"refused": refused} if refused else {})
    if parts.model:
        signature = parts.model.signature
        return facts | {
            "opset": parts.model.opset,
            "inputs": {spec.name: str(spec) for spec in signature.inputs},
            "outputs": {spec.name: str(spec) for spec in signature.outputs},
            **_place(parts.model),
        }
    trained = parts.trained
    assert trained is not None
    return facts | {
        "data": trained.data["name"],
        "parameters": trained.parameters,
        "metrics": trained.metrics,
        "intervals": trained.intervals,
        "baselines": trained.baselines,
        "remarks": list(trained.remarks),
        "best_epoch": trained.best_epoch,
        **_place(trained),
    }


def _place(value: TrainedModel | OnnxModel | Engine | Certificate) -> dict[str, str]:
    return {"path": str(value.folder), "digest": value.digest}


def describe_certificate(certificate: Certificate) -> dict[str, Any]:
    facts = certificate.model_dump(
        mode="json", include={"failures", "not_run", "contract", "swallowed", "drift", "budget"}
    )
    return {
        "target": certificate.target,
        "passed": bool(certificate),
        "comparisons": len(certificate.findings),
        "worst_error_over_limit": _worst(certificate),
        "worst": [
            finding.model_dump(mode="json", include={"check", "case", "output", "error", "limit"})
            for finding in worst_findings(certificate)
        ],
        **facts,
        "diagnosis": certificate.diagnosis and certificate.diagnosis.model_dump(mode="json"),
        "requested": certificate.requested,
        "precisions": [
            {"operator": operator, "precision": precision, "device": device, "nodes": nodes}
            for operator, precision, device, nodes in operators(certificate)
        ],
        **_place(certificate),
    }


def print_certificates(certificates: Iterable[Certificate]) -> None:
    """Each certificate and those of its parts in words, and where it lies."""
    for certificate in certificates:
        parts = [part(certificate, name) for name in sorted(certificate.parts)]
        for value in (certificate, *parts):
            print("\n".join(certificate_text(value)))
        print(f"  {certificate.folder / CERTIFICATE_VALUE}")


def print_facts(facts: dict[str, Any]) -> None:
    """A document as lines of `key: value`, nested ones indented."""
    for line in _lines(facts, ""):
        print(line)


def _lines(value: object, indent: str) -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(cast("list[object]", value), 1)
    for key, item in items:
        if isinstance(item, dict | list) and item:
            yield f"{indent}{key}:"
            yield from _lines(item, indent + "  ")
        else:
            yield f"{indent}{key}: {item}"


def print_builds(document: dict[str, Any]) -> None:
    """Compiled engines that nobody has run: facts as lines, layers as a table of how many."""
    for build in document["builds"]:
        for name, facts in {"": build, **build["parts"]}.items():
            hidden = ("layers", "parts", "kept", "path")
            print_facts({"part": name} if name else {"path": build["path"]})
            print_facts({key: value for key, value in facts.items() if key not in hidden})
            table = _table("operator", "precision", ">layers")
            counted = Counter(
                (one["operator"], one["precision"]) for one in facts.get("layers", ())
            )
            for (operator, precision), count in sorted(counted.items()):
                table.add_row(operator, precision, str(count))
            Console().print(table)
            for one in facts["kept"]:
                Console().print(f"in fp32: {one['name']}: {one['reason']}", markup=False)


def print_recipes(rows: list[dict[str, Any]]) -> None:
    """The zoo as a table."""
    table = _table("name", "kind", ">parameters", "data", "metric", "paper")
    table.columns[1].no_wrap = True
    for row in rows:
        table.add_row(
            row["name"], row["kind"], f"{row['parameters']:,}", ", ".join(row["data"]),
            row["metric"], _reference(row["paper"]),
        )  # fmt: skip
    Console().print(table)


def _reference(paper: str) -> str:
    """`First author et al. year` of a paper."""
    found = re.match(r"(.*?)\s*\b((?:19|20)\d\d)\b", paper)
    if found is None:
        return paper
    first, *others = found[1].split(",")
    return f"{first}{' et al.' if others else ''} {found[2]}"


def print_layers(inspection: Inspection) -> None:
    """The layer table, and totals."""
    table = _table(
        "layer", "type", "output shape", ">parameters", ">multiplications", ">receptive field"
    )
    for layer in inspection.layers:
        table.add_row(
            layer.name, layer.type, " x ".join(map(str, layer.output_shape)),
            f"{layer.parameters:,}", f"{layer.multiplications:,}",
            "-" if layer.receptive_field is None else str(layer.receptive_field),
        )  # fmt: skip
    Console().print(table)
    if inspection.blocks:
        blocks = _table("block", "type", "output shape", ">parameters", ">multiplications")
        for block in inspection.blocks:
            blocks.add_row(
                block.name, block.type, " x ".join(map(str, block.output_shape)),
                f"{block.parameters:,}", f"{block.multiplications:,}",
            )  # fmt: skip
        Console().print()
        Console().print(blocks)
    more = inspection.training_only_parameters
    Console().print(
        f"{inspection.name}: {inspection.parameters:,} parameters"
        + (f" (and {more:,} in training only)" if more else "")
        + f", {inspection.multiplications:,} multiplications a row"
    )


def print_released(rows: list[dict[str, Any]]) -> None:
    """What became of each recipe of a run."""
    table = _table("recipe", "data", "test metric", "certificate", ">seconds", "bundle")
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], "", "[red]failed", "", "", "")
            continue
        ratio = row["certificate"]["worst_error_over_limit"]
        table.add_row(
            row["name"], row["data"], f"{row['metric']} {row['metrics'][row['metric']]:.4f}",
            f"[green]passed[/], {ratio:.2f} of limit", f"{row['seconds']:.1f}",
            row["bundle"],
        )  # fmt: skip
    Console().print(table)
    for row in rows:
        for why in row.get("refused", {}).values():
            Console().print(f"refused: {why}", markup=False)
        for remark in row.get("remarks", ()):
            Console().print(f"{row['name']}: {remark}", markup=False)


def print_versions(rows: list[dict[str, Any]], now: dict[str, str]) -> None:
    """The record of what was blessed, oldest first; `now` says what each version is at present."""
    table = _table("when", "who", "decision", "version", "certificate", "bundle", "now")
    last = {row["version"]: number for number, row in enumerate(rows)}
    for number, row in enumerate(rows):
        share = f" {row['percent']:g} %" if row["action"] == "canary" else ""
        certificates = ", ".join(f"{t} {d[:12]}" for t, d in row["certificates"].items())
        table.add_row(
            row["when"][:19].replace("T", " "), row["who"], row["action"] + share, row["version"],
            certificates, row["bundle"],
            now.get(row["version"], "") if last[row["version"]] == number else "",
        )  # fmt: skip
    Console().print(table)


def print_next(rows: list[dict[str, Any]], out: Path) -> None:
    """What to type next: a server for the bundles of each kind, what to bless, and a report."""
    where = "" if out == Path("runs") else f" --out {out}"
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(row["kind"], []).append(row["name"])
    lines = [f"{program()} serve {' '.join(some)}{where}" for some in names.values()]
    for row in rows:
        if row["blessed"] not in (None, row["version"]):  # what servers go on with until then
            lines.append(f"{program()} bless {row['name']}{where}")
    if rows:
        lines.append(f"{program()} report {rows[0]['name']}{where}")
        print("\nnext: " + "\n      ".join(lines))


def _table(*columns: str) -> Table:
    """A table; a column whose name starts with `>` holds numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.removeprefix(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
        )
    return table


def _worst(certificate: Certificate) -> float | None:
    return rounded(worst_ratio(certificate.findings))


def rounded(ratio: float | None) -> float | None:
    """An error over its limit as JSON holds it: four digits, null where there is no number."""
    return None if ratio is None or math.isinf(ratio) else round(ratio, 4)
