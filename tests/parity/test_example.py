"""The trained example, on real text, at every length it can take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mbexport import export_onnx
from tests.checkpoints import EXAMPLE, copy_example, edit_config, torch_model, torch_output
from tests.inputs import GRAPHS, SPECIAL_LENGTHS, allowed_error, error, padded_batch, run_graph

VOCABULARY = 5000


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_lengths_to_2048_with_every_padding(pooling: str, tmp_path: Path) -> None:
    checkpoint = copy_example(tmp_path / "checkpoint")
    edit_config(checkpoint, lambda config: config.update(classifier_pooling=pooling))
    export_onnx(checkpoint, tmp_path / "bundle")
    model = torch_model(checkpoint)
    for length in (*SPECIAL_LENGTHS, 512, 1024, 2048):
        ids, mask = padded_batch(length, VOCABULARY)
        expected = torch_output(model, ids, mask)
        for graph in GRAPHS:
            found = error(run_graph(tmp_path / "bundle", graph, ids, mask), expected, mask)
            assert found <= allowed_error(expected), (graph, length)


@pytest.mark.parametrize("length", [8191, 8192])
def test_longest_texts(length: int, example_bundle: Path) -> None:
    model = torch_model(EXAMPLE)
    limit = allowed_error(torch_output(model, *padded_batch(512, VOCABULARY)))  # one text's spread is no scale
    ids, mask = padded_batch(length, VOCABULARY)
    for row in (0, 3):  # unpadded, and padded in between; one at a time, for PyTorch's memory
        one, one_mask = ids[row : row + 1], mask[row : row + 1]
        expected = torch_output(model, one, one_mask)
        for graph in GRAPHS:
            found = error(run_graph(example_bundle, graph, one, one_mask), expected, one_mask)
            assert found <= limit, (graph, row)


def test_readme_states_the_accuracy_that_the_training_reached() -> None:
    figures = json.loads((EXAMPLE / "figures.json").read_text())
    readme = (EXAMPLE.parents[2] / "README.md").read_text()
    assert f"{100 * figures['accuracy, whole articles (first 1,024 tokens)']:.1f} %" in readme
    assert f"{100 * figures['accuracy, first 32 tokens only']:.1f} %" in readme
