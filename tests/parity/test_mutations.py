"""Graphs with one deliberate fault each: the comparison must notice every one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from mbexport.bundle.write import write_bundle
from mbexport.checkpoint.load import load_checkpoint
from mbexport.checkpoint.spec import ModelSpec
from tests.bundles import rehash
from tests.checkpoints import save_checkpoint, torch_model, torch_output
from tests.inputs import GRAPHS, allowed_error, error, padded_batch, run_graph

Mutation = Callable[[ModelSpec], ModelSpec]


def replacing(**fields: object) -> Mutation:
    return lambda spec: dataclasses.replace(spec, **fields)


MUTATIONS: dict[str, Mutation] = {
    "window of 63": replacing(half_window=63),
    "window of 65": replacing(half_window=65),
    "thetas swapped": lambda spec: dataclasses.replace(spec, global_rope=spec.local_rope, local_rope=spec.global_rope),
    "one theta everywhere": lambda spec: dataclasses.replace(spec, local_rope=spec.global_rope),
    "window dropped": replacing(layer_is_global=(True,) * 4),
    "local and global swapped": lambda spec: dataclasses.replace(
        spec, layer_is_global=tuple(not is_global for is_global in spec.layer_is_global)
    ),
    "another epsilon": replacing(norm_eps=1e-3),
    "tanh approximation": replacing(activation="gelu_tanh"),
    "the other pooling": lambda spec: dataclasses.replace(spec, head=dataclasses.replace(spec.head, pooling="mean")),
}


def mutant(checkpoint: Path, mutate: Mutation, bundle: Path) -> Path:
    """A bundle whose graphs compute another model than the checkpoint's, from its weights."""
    loaded = load_checkpoint(checkpoint)
    write_bundle(dataclasses.replace(loaded, spec=mutate(loaded.spec)), bundle)
    return bundle


@pytest.fixture(scope="module")
def reference(tiny: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids, mask = padded_batch(300, vocabulary=512)
    return ids, mask, torch_output(torch_model(tiny), ids, mask)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", MUTATIONS)
def test_mutant_is_found(
    name: str, graph: str, tiny: Path, tmp_path: Path, reference: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    ids, mask, expected = reference
    bundle = mutant(tiny, MUTATIONS[name], tmp_path / "bundle")
    assert error(run_graph(bundle, graph, ids, mask), expected, mask) > 3 * allowed_error(expected)


@pytest.mark.parametrize("graph", GRAPHS)
def test_unmutated_graph_passes_the_same_comparison(
    graph: str, tiny: Path, tmp_path: Path, reference: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    ids, mask, expected = reference
    bundle = mutant(tiny, lambda spec: spec, tmp_path / "bundle")
    assert error(run_graph(bundle, graph, ids, mask), expected, mask) <= allowed_error(expected)


def ignore_the_mask(path: Path) -> None:
    """Rewire a graph so that every place counts as a real token."""
    model = onnx.load(path, load_external_data=False)
    cast = next(node for node in model.graph.node if list(node.input) == ["attention_mask"])
    everything = onnx.helper.make_node("Equal", ["attention_mask", "attention_mask"], list(cast.output))
    position = list(model.graph.node).index(cast)
    model.graph.node.remove(cast)
    model.graph.node.insert(position, everything)
    onnx.save(model, path)
    rehash(path)


@pytest.mark.parametrize("graph", GRAPHS)
def test_ignored_padding_mask_is_found(
    graph: str, tiny: Path, tmp_path: Path, reference: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    ids, mask, expected = reference
    bundle = mutant(tiny, lambda spec: spec, tmp_path / "bundle")
    ignore_the_mask(bundle / graph)
    found = run_graph(bundle, graph, ids, mask)
    for row in (1, 2, 3):  # padded on the right, on the left, in between
        assert error(found[row], expected[row], mask) > 3 * allowed_error(expected), row
    assert error(found[0], expected[0], mask) <= allowed_error(expected)


@pytest.mark.parametrize("graph", GRAPHS)
def test_lost_window_is_invisible_up_to_65_tokens(graph: str, tiny: Path, tmp_path: Path) -> None:
    """Why the parity tests go beyond 65 tokens: below, this fault cannot be seen."""
    bundle = mutant(tiny, lambda spec: dataclasses.replace(spec, half_window=1000), tmp_path / "bundle")
    model = torch_model(tiny)
    errors = {}
    for length in (65, 66, 67, 80):
        ids, mask = padded_batch(length, vocabulary=512)
        ids, mask = ids[:1], mask[:1]
        expected = torch_output(model, ids, mask)
        errors[length] = error(run_graph(bundle, graph, ids, mask), expected, mask) / allowed_error(expected)
    assert errors[65] <= 1
    assert min(errors[66], errors[67], errors[80]) > 3


def test_a_mutant_checkpoint_of_the_other_kind_is_found(tmp_path: Path) -> None:
    """The same faults in the other direction: PyTorch has the window of 130, the graph of 128."""
    wide = save_checkpoint(tmp_path / "wide", local_attention=130)
    narrow = save_checkpoint(tmp_path / "narrow", local_attention=128)
    bundle = mutant(narrow, lambda spec: spec, tmp_path / "bundle")
    ids, mask = padded_batch(300, vocabulary=512)
    expected = torch_output(torch_model(wide), ids, mask)
    for graph in GRAPHS:
        assert error(run_graph(bundle, graph, ids, mask), expected, mask) > 3 * allowed_error(expected)
