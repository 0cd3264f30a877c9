"""The plan of `mbexport bench`: a user's bundle, shapes, texts and peers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mbexport import manifest as manifests
from mbexport.bench.arithmetic import model_size
from mbexport.bench.contenders import Contender, parse_peer
from mbexport.bench.run import Plan
from mbexport.bench.workloads import USER_SHAPES, IntArray, Maker, Workload, parse_shape
from mbexport.errors import BundleError, InputError
from mbexport.manifest import Manifest
from mbexport.options import LARGEST_ERROR, LARGEST_INT8_ERROR
from mbexport.runtime.cpu_limit import available_cores
from mbexport.runtime.graphs import cpu_graph
from mbexport.runtime.text import TextEncoder, bundle_encoder, check_masks
from mbexport.texts import Text

START_SHAPE = "1x16"


def make_plan(
    bundle: Path,
    *,
    shapes: Sequence[str] | None = None,
    texts: tuple[str, Sequence[Text]] | None = None,
    against: Sequence[str] = (),
    allowed_error: float = LARGEST_ERROR,
    threads: int | None = None,
    rounds: int | None = None,
) -> Plan:
    """What to measure on a bundle.

    Args:
        bundle: its runtime in FP32 comes first, and the others are compared with it; in INT8 it comes
            second, where the bundle has such a graph for this CPU.
        shapes: ``BxL`` each; None for the usual ones, or for none where there are texts.
        texts: a name and a user's own texts, measured as one workload.
        against: peers, ``NAME`` or ``NAME=PATH``.
        allowed_error: share of the spread that peers' answers may differ by.
        threads: cores of every contender; None for all that this process may use.
        rounds: of each workload; None decides by the time a run takes.

    Raises:
        BundleError: the bundle is damaged.
        InputError: a shape, a text or a peer that cannot be measured.
        MissingExtraError: a peer's packages are not installed.
    """
    manifest = manifests.read(bundle)
    manifests.check_files(bundle, manifest)
    size = model_size(bundle, manifest)
    threads = threads or available_cores()
    peers = [parse_peer(text, bundle, threads, allowed_error) for text in against]
    if len(set(against)) != len(against):
        raise InputError(f"--against: found the same contender twice in {', '.join(against)}; name each once")
    encoder = bundle_encoder(bundle, manifest)
    mask_id = encoder.token_id(manifest.mask_token) if manifest.mask_token else None
    maker = Maker(size.vocab_size, size.pad_id, mask_id)
    own, more = own_contenders(bundle, manifest, threads)
    names, notes = shapes_to_run(shapes, manifest.max_length, has_texts=texts is not None)
    workloads = [maker.shape(name) for name in names]
    if texts is not None:
        name, given = texts
        workloads.append(maker.from_ids(name, _token_ids(encoder, manifest, given, mask_id)))
    return Plan(
        model=manifest.source.name,
        size=size,
        contenders=(*own, *peers),
        workloads=tuple(workloads),
        tokenizer=bundle / "tokenizer.json",
        start=_start(maker, manifest.max_length),
        rounds=rounds,
        notes=(*notes, *more),
    )


def own_contenders(bundle: Path, manifest: Manifest, threads: int) -> tuple[list[Contender], list[str]]:
    """The bundle's runtime in FP32, and in INT8 where it has a graph for this CPU; a note where it only could have.

    INT8 counts as wrong where its quality gate failed.
    """
    own = [Contender("mbexport", "mbexport", str(bundle), threads)]
    if not any(graph.precision == "int8" and graph.fused for graph in manifest.graphs):
        return own, []
    try:
        graph = cpu_graph(bundle, manifest, "int8")
    except BundleError as why:
        return own, [f"INT8 not run: {why}"]
    rows = (
        other.file for other in manifest.graphs
        if other.fused and other.precision == "int8" and other.activation_bits == graph.activation_bits
        and not other.selects_tokens
    )  # fmt: skip
    doubt = "its quality gate failed" if graph.gate == "failed" else None
    name, kind = "mbexport int8", "mbexport-int8"
    file = next(rows, graph.file)
    return [*own, Contender(name, kind, str(bundle), threads, LARGEST_INT8_ERROR, doubt, file)], []


def shapes_to_run(shapes: Sequence[str] | None, max_length: int, *, has_texts: bool) -> tuple[list[str], list[str]]:
    """Shapes to run, and a note for those of the usual ones that the model is too short for.

    Raises:
        InputError: ``shapes`` holds one that is none, or one that the model is too short for.
    """
    if shapes is not None:
        for name in shapes:
            if parse_shape(name)[1] > max_length:
                raise InputError(
                    f"--shapes: {name} is longer than the model's {max_length} tokens; choose shorter texts"
                )
        return list(dict.fromkeys(name.strip() for name in shapes)), []
    if has_texts:
        return [], []
    fitting = [name for name in USER_SHAPES if parse_shape(name)[1] <= max_length]
    left_out = [name for name in USER_SHAPES if name not in fitting]
    notes = [f"not run: {', '.join(left_out)}; the model takes {max_length} tokens"] if left_out else []
    return fitting or [f"1x{max_length}"], notes


def _start(maker: Maker, max_length: int) -> Workload:
    count, length = parse_shape(START_SHAPE)
    return maker.shape(f"{count}x{min(length, max_length)}")


def _token_ids(encoder: TextEncoder, manifest: Manifest, texts: Sequence[Text], mask_id: int | None) -> list[IntArray]:
    """Ids of a user's texts, by the bundle's tokenizer."""
    ids = [item.ids for item in encoder.encode(texts)]
    for number, tokens in enumerate(ids):
        if not len(tokens):
            raise InputError(f"text {number} has no tokens; leave it out")
    if mask_id is not None:
        check_masks(ids, mask_id, manifest)
    return ids
