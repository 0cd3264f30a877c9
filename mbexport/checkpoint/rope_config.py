"""Rotary position settings, global and local, from a config.json of either generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mbexport.checkpoint.fields import Fields

GLOBAL, LOCAL = "full_attention", "sliding_attention"
DEFAULT_THETA = {GLOBAL: 160_000.0, LOCAL: 10_000.0}
ROPE_TYPES = ("default", "linear", "dynamic", "yarn")


@dataclass(frozen=True)
class RopeSpec:
    """How one kind of layer rotates positions.

    ``factor`` and what follows it matter to scaled kinds only; ``attention_factor``
    multiplies cosines and sines (YaRN), ``original_positions`` is the length before scaling.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    original_positions: int | None = None


def parse_ropes(config: dict[str, Any], notes: list[str]) -> tuple[RopeSpec, RopeSpec]:
    """The settings of (global, local) layers.

    Args:
        config: the parsed config.json.
        notes: gets a sentence for every guess.

    Raises:
        CheckpointError: a kind of scaling that is not supported, or a wrong value, named.
    """
    fields = Fields(config, "config.json")
    thetas = dict(DEFAULT_THETA)
    thetas[GLOBAL] = fields.number("global_rope_theta", thetas[GLOBAL])
    if "local_rope_theta" in config and config["local_rope_theta"] is None:
        notes.append(f"local_rope_theta is null: local layers use global_rope_theta {thetas[GLOBAL]:g}")
        thetas[LOCAL] = thetas[GLOBAL]
    else:
        thetas[LOCAL] = fields.number("local_rope_theta", thetas[LOCAL])
    by_kind = fields.raw("rope_parameters") if fields.has("rope_parameters") else {}
    if not isinstance(by_kind, dict) or not set(by_kind) <= {GLOBAL, LOCAL}:
        raise fields.wrong("rope_parameters", f"an object with {GLOBAL} and {LOCAL}")
    # The older key, which transformers 5 applies to both kinds of layers.
    scaling = fields.raw("rope_scaling") if fields.has("rope_scaling") else {}
    if not isinstance(scaling, dict):
        raise fields.wrong("rope_scaling", "an object")
    if scaling.get("type", "default") != "default" and "rope_type" not in scaling:
        # transformers 5 passes over this scaling in silence, earlier ones applied it.
        raise fields.wrong("rope_scaling", "rope_type in the place of type, so that every transformers reads it alike")
    where = "rope_scaling" if scaling else "rope_parameters"
    positions = fields.size("max_position_embeddings", 8192)

    def parse(kind: str) -> RopeSpec:
        own = by_kind.get(kind)
        if own is not None and not isinstance(own, dict):
            raise fields.wrong("rope_parameters", f"an object with objects {GLOBAL} and {LOCAL}")
        return _parse_rope({**(own or {}), **scaling}, f"config.json: {where}.{kind}", thetas[kind], positions)

    return parse(GLOBAL), parse(LOCAL)


def _parse_rope(values: dict[str, Any], where: str, theta: float, positions: int) -> RopeSpec:
    fields = Fields({"rope_type": values.get("type"), **values}, where)
    kind = fields.choice("rope_type", "default", ROPE_TYPES) if fields.has("rope_type") else "default"
    theta = fields.number("rope_theta", theta)
    if kind == "default":
        return RopeSpec(theta)
    if values.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise fields.wrong("partial_rotary_factor", "1: ModernBERT rotates every channel")
    if kind == "yarn" and theta == 1:  # its logarithm divides
        raise fields.wrong("rope_theta", "another number than 1")
    if kind != "yarn":
        return RopeSpec(theta, kind, factor=fields.required_number("factor"))
    original = fields.size("original_max_position_embeddings", positions)

    def optional(name: str) -> float | None:
        return fields.required_number(name) if fields.has(name) else None

    return RopeSpec(
        theta,
        kind,
        factor=positions / original if not fields.has("factor") else fields.required_number("factor"),
        attention_factor=optional("attention_factor"),
        beta_fast=optional("beta_fast") or 32.0,
        beta_slow=optional("beta_slow") or 1.0,
        mscale=optional("mscale"),
        mscale_all_dim=optional("mscale_all_dim"),
        original_positions=original,
    )
