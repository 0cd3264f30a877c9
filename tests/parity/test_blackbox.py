"""Where only outputs can be seen, the cause is found by running PyTorch as the other model that a graph may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from mbexport import validate
from mbexport.checkpoint.spec import ModelSpec
from mbexport.parity.diagnosis import search
from mbexport.parity.report import Fault, GraphParity
from tests.checkpoints import edit_config, save_checkpoint
from tests.foreign import behind_output, foreign
from tests.parity.test_mutations import MUTATIONS, ignore_the_mask, mutant, replacing
from tests.parity.test_sentences import PIPELINES, save_pipeline

# What each mutant of the graph is called, and a word of the explanation.
CAUSES = {
    "window of 63": ("window", "63 tokens"),
    "window of 65": ("window", "65 tokens"),
    "thetas swapped": ("theta", "swapped"),
    "one theta everywhere": ("theta", "160000"),
    "window dropped": ("window dropped", "all layers are global"),
    "local and global swapped": ("layer pattern", "exchanged"),
    "another epsilon": ("epsilon", "0.001"),
    "tanh approximation": ("activation", "tanh"),
    "the other pooling": ("pooling", "mean, not cls"),
}
FURTHER: dict[str, tuple[Callable[[ModelSpec], ModelSpec], str, str]] = {
    "whole window to either side": (replacing(half_window=128), "window", "128 tokens"),
    "local layers without a window": (replacing(half_window=1000), "window dropped", "local layers attend to all"),
    "pattern shifted": (replacing(layer_is_global=(False, False, True, True)), "layer pattern", "shifted"),
    "small epsilon": (replacing(norm_eps=1e-3), "epsilon", "0.001"),
}


@pytest.fixture(autouse=True)
def outputs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing were known of a graph's inner values, which the portable graph's are found by."""
    monkeypatch.setattr(search, "diagnose", lambda *_: None)


def found(subject: Path, checkpoint: Path, **options: object) -> GraphParity:
    (graph,) = validate(subject, checkpoint=checkpoint, max_length=260, **options).graphs
    assert graph.diagnosis is not None
    return graph


def only_fault(graph: GraphParity) -> Fault:
    assert not graph.passed
    assert graph.diagnosis is not None
    (fault,) = graph.diagnosis.faults
    assert (fault.stages, fault.kind) == (("outputs",), "outputs")
    assert fault.evidence is not None
    assert fault.evidence < 1e-5
    return fault


@pytest.mark.parametrize("name", [*MUTATIONS, *FURTHER])
def test_the_cause_is_named(name: str, tiny: Path, tmp_path: Path) -> None:
    mutate, cause, words = FURTHER[name] if name in FURTHER else (MUTATIONS[name], *CAUSES[name])
    bundle = mutant(tiny, mutate, tmp_path / "bundle")
    fault = only_fault(found(foreign(bundle, tmp_path / "theirs"), tiny))
    assert fault.cause == cause
    assert words in fault.explanation


def test_lengths_and_paddings_are_told(tiny: Path, tmp_path: Path) -> None:
    bundle = mutant(tiny, replacing(half_window=65), tmp_path / "bundle")
    assert "the shortest of 66 tokens" in only_fault(found(foreign(bundle, tmp_path / "theirs"), tiny)).tokens


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_ignored_mask(pooling: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", classifier_pooling=pooling)
    folder = foreign(mutant(checkpoint, lambda spec: spec, tmp_path / "bundle"), tmp_path / "theirs")
    ignore_the_mask(folder / "model.onnx")
    fault = only_fault(found(folder, checkpoint))
    assert fault.cause == "mask dropped"
    assert ("neither attention nor the pooling" in fault.explanation) is (pooling == "mean")
    assert "only those with padding on the right, on the left, in between" in fault.tokens


def pool_all(model: onnx.ModelProto) -> None:
    """Let the graph's mean take padding in: everything behind the last layer reads a mask of ones."""
    names = [node.name for node in model.graph.node]
    behind = next(n for n, name in enumerate(names) if name.startswith("final_norm"))
    ones = onnx.helper.make_node("Equal", ["attention_mask", "attention_mask"], ["every_place"])
    for node in list(model.graph.node)[behind:]:
        node.input[:] = ["every_place" if name == "real_tokens" else name for name in node.input]
    model.graph.node.insert(0, ones)


def test_padding_in_the_mean(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", classifier_pooling="mean")
    folder = foreign(mutant(checkpoint, lambda spec: spec, tmp_path / "bundle"), tmp_path / "theirs", pool_all)
    assert only_fault(found(folder, checkpoint)).cause == "padding in the mean"


def test_another_pooling_of_a_pipeline(tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, *PIPELINES["normalized"]())

    def last(spec: ModelSpec) -> ModelSpec:
        assert spec.sentence is not None
        return dataclasses.replace(spec, sentence=dataclasses.replace(spec.sentence, pooling="last"))

    folder = foreign(mutant(pipeline, last, tmp_path / "bundle"), tmp_path / "theirs")
    assert "pooled by last, not mean" in only_fault(found(folder, pipeline)).explanation


def test_settings_that_older_transformers_do_not_read(tmp_path: Path) -> None:
    """A graph of the usual bases, of a checkpoint whose rope_parameters say otherwise."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    bundle = mutant(checkpoint, lambda spec: spec, tmp_path / "bundle")
    bases = {"full_attention": 160000.0, "sliding_attention": 40000.0}
    ropes = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()}
    edit_config(checkpoint, lambda config: config.update(rope_parameters=ropes))
    fault = only_fault(found(foreign(bundle, tmp_path / "theirs"), checkpoint))
    assert fault.cause == "theta"
    assert "transformers before version 5 does not read" in fault.explanation


def test_labels_in_another_order(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    def turn(model: onnx.ModelProto) -> None:
        behind_output(model, ("Gather", {"axis": 1}, [np.array([2, 1, 0])]))

    fault = only_fault(found(foreign(tiny_bundle, tmp_path / "theirs", turn), tiny))
    assert fault.cause == "permuted labels"
    assert "'LABEL_0' gives the model's 'LABEL_2'" in fault.explanation
    assert fault.channels == "outputs 0, 2 of 3"


def test_probabilities_in_the_place_of_logits(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = foreign(tiny_bundle, tmp_path / "x", lambda model: behind_output(model, ("Softmax", {"axis": -1}, [])))
    assert "softmax" in only_fault(found(folder, tiny)).explanation


def change_a_weight(folder: Path) -> None:
    """One matrix of the MLP of a layer, doubled."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "layers.2.mlp.Wo.weight")
    place = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key in ("offset", "length")}
    data = np.memmap(folder / "model.onnx_data", np.uint8, "r+")
    values = data[place["offset"] : place["offset"] + place["length"]].view(np.float32)
    values *= 2
    data.flush()


def test_what_no_setting_explains_is_not_explained(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """The control of all of the above: no cause is made up, and no layer is named."""
    folder = foreign(tiny_bundle, tmp_path / "theirs")
    change_a_weight(folder)
    graph = found(folder, tiny)
    assert graph.diagnosis is not None
    assert not graph.passed
    assert (graph.diagnosis.faults, graph.diagnosis.stages) == ((), ())
    assert "other settings of the model in PyTorch answers like it" in graph.diagnosis.conclusion
    assert "no layer can be named" in graph.diagnosis.conclusion


def test_a_graph_that_holds_is_searched_on_request_only(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = foreign(tiny_bundle, tmp_path / "theirs")
    graph = found(folder, tiny, bisect=True)
    assert graph.passed
    assert graph.diagnosis is not None
    assert graph.diagnosis.faults == ()
    assert "no input of" in graph.diagnosis.conclusion
    assert validate(folder, checkpoint=tiny, max_length=70).graphs[0].diagnosis is None
