"""Engines of a bundle, and what their builders reported, as part of a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mbexport.manifest import Engine
from mbexport.page.document import definitions, section
from mbexport.page.fields import Fields
from mbexport.page.html import Child, Html, joined, tag
from mbexport.profiles import parse_profiles, profile_text


@dataclass(frozen=True)
class BuildFacts:
    """What a build reported.

    Attributes:
        why: why this builder was taken.
        fused: how many attention layers one kernel computes, in words.
        loose: the other layers, each with its kind.
        products: what became of the products in 8 bits, in words; None where the graph has none.
        activations: bytes that each profile takes at its largest shape, None where the builder did not say.
        layers: of the network that was parsed.
        weight_bytes: GPU memory of the weights, or None.
        workspace: bytes of scratch memory that were allowed; None for the builder's default.
        seconds: that the build took.
        peak_bytes: most memory of the builder's process, or None.
        warnings: what a user should know.
    """

    why: str
    fused: str
    loose: tuple[str, ...]
    products: str | None
    activations: tuple[int | None, ...]
    layers: int
    weight_bytes: int | None
    workspace: int | None
    seconds: float
    peak_bytes: int | None
    warnings: tuple[str, ...]

    @classmethod
    def read(cls, report: Mapping[str, Any], engine: Engine) -> BuildFacts:
        """Take them from a report as ``mbexport trt`` writes it.

        Raises:
            ValueError: a field is missing or of another type, or the report is of another build.
        """
        fields = Fields(report, "the report")
        if fields.one("engine").text("sha256") != engine.sha256:
            raise ValueError("it is of another build of this engine")
        attention = fields.many("attention")
        loose = [row for row in attention if not row.flag("fused")]
        return cls(
            why=fields.text("why"),
            fused=fields.text("fused_attention"),
            loose=tuple(f"{row.count('layer')} ({row.text('kind')})" for row in loose),
            products=_products(fields.optional("products")),
            activations=tuple(row.optional_count("activation_bytes") for row in fields.many("profiles")),
            layers=fields.count("layers"),
            weight_bytes=fields.optional_count("weight_bytes"),
            workspace=fields.optional_count("workspace"),
            seconds=fields.number("seconds"),
            peak_bytes=fields.optional_count("peak_bytes"),
            warnings=fields.texts("warnings"),
        )


def _products(products: Fields | None) -> str | None:
    if products is None:
        return None
    asked, precision = products.count("asked"), products.text("precision")
    unseen = products.optional_texts("unseen")
    if unseen is None:
        return f"the graph asks for {asked} in {precision}; the engine does not say"
    return f"{asked - len(unseen)} of {asked} in {precision}, as the engine's own program has them"


@dataclass(frozen=True)
class EngineFacts:
    """An engine of a bundle.

    Attributes:
        entry: the manifest's.
        current: whether it was built from the graph that the bundle holds now.
        build: what its builder reported; None where that is not known.
    """

    entry: Engine
    current: bool
    build: BuildFacts | None = None


def engine_content(facts: EngineFacts, level: int = 3) -> Html:
    """One engine with all that is known of its build.

    Args:
        facts: the engine.
        level: of its heading.
    """
    engine, build = facts.entry, facts.build
    origin = engine.graph if facts.current else f"an earlier {engine.graph}, which the bundle no longer holds"
    rows: list[tuple[str, Child]] = [
        ("built for", f"{engine.gpu} (compute capability {engine.compute_capability})"),
        ("precision", engine.precision),
        ("built from", origin),
        ("builder", f"{engine.builder} {engine.builder_version}" + (f": {build.why}" if build else "")),
        ("size", f"{engine.bytes / 1e6:.1f} MB"),
        ("profiles", _profiles(engine, build)),
    ]
    if build is None:
        rows.append(("build", "nothing more is known of it"))
    else:
        rows += _build_rows(build)
    warnings = () if build is None else build.warnings
    notes = (tag("p", tag("strong", "Warning: "), message, class_="fault") for message in warnings)
    return section(engine.file, definitions(rows), *notes, level=level)


def _build_rows(build: BuildFacts) -> list[tuple[str, Child]]:
    loose = f"; several kernels in {', '.join(build.loose)}" if build.loose else ""
    return [
        ("build", f"{build.layers} layers in {build.seconds:.1f} s, peak memory {_megabytes(build.peak_bytes)}"),
        ("fused attention", build.fused + loose),
        ("products", build.products),
        ("weights", f"{_megabytes(build.weight_bytes)} of GPU memory, as the builder reports"),
        ("scratch memory", "the builder's default" if build.workspace is None else _megabytes(build.workspace)),
    ]


def _profiles(engine: Engine, build: BuildFacts | None) -> Html:
    profiles = parse_profiles(engine.profile)
    known = build.activations if build is not None and len(build.activations) == len(profiles) else None
    lines = (
        profile_text(profile) + ("" if known is None else f"; activations {_megabytes(known[number])}")
        for number, profile in enumerate(profiles)
    )
    return joined(tag("span", line, class_="line") for line in lines)


def _megabytes(size: int | None) -> str:
    return "not known" if size is None else f"{size / 1e6:.1f} MB"
