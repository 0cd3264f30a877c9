"""What graphs are held against: PyTorch, or another graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mbexport.checkpoint.load import Checkpoint
from mbexport.errors import InputError
from mbexport.parity.figures import FloatArray, Outputs
from mbexport.parity.graphs.runners import Counter, graph_runner
from mbexport.parity.inputs import Inputs
from mbexport.parity.limits import Terms
from mbexport.parity.report import OwnError
from mbexport.parity.subjects import Subject, SubjectGraph


@dataclass(frozen=True)
class Reference:
    """The outputs that are expected of each case, and what they are worth.

    ``error``: what they may be off themselves; ``own``: what half precision costs PyTorch, where it was run;
    ``is_half``: whether they were computed in half precision by who knows what.
    """

    description: str
    expected: list[FloatArray]
    error: float = 0.0
    own: OwnError | None = None
    is_half: bool = False


def by_pytorch(
    checkpoint: Checkpoint, inputs: Inputs, terms: Terms, implementation: str, done: Counter, *, needs_half: bool
) -> Reference:
    """PyTorch's outputs, in float32 but for FlashAttention's.

    Args:
        checkpoint: the model.
        inputs: the cases.
        terms: what a prediction is.
        implementation: one of ``mbexport.options.REFERENCES``.
        done: counts the passes.
        needs_half: whether graphs in half precision are to be compared.

    Raises:
        InputError: the implementation cannot run here.
    """
    from mbexport.parity.pytorch.own import flash_reference, own_error, own_error_on_cpu, run_all
    from mbexport.parity.pytorch.reference import TorchReference, choose_reference

    chosen = choose_reference(implementation)
    done.expect(len(inputs.cases))
    if chosen == "flash_attention_2":
        model, found = flash_reference(checkpoint, inputs, done)
        done.expect(len(inputs.cases))
        exact = run_all(TorchReference(checkpoint, "sdpa"), inputs, done, "PyTorch in float32")
        flash = own_error(model.description, Outputs(inputs.cases, inputs.places, exact, found), terms)
        return Reference(model.description, found, flash.max_error, flash)
    model = TorchReference(checkpoint, chosen)
    expected, description = run_all(model, inputs, done, chosen), model.description
    del model  # a large one and a graph's session need not stand in memory together
    own = own_error_on_cpu(checkpoint, inputs, expected, terms, done) if needs_half else None
    return Reference(description, expected, own=own)


def by_graph(other: Subject, graph: SubjectGraph, inputs: Inputs, done: Counter) -> Reference:
    """The outputs of another graph.

    Args:
        other: the bundle or directory that it is of.
        graph: the graph.
        inputs: the cases.
        done: counts the passes.

    Raises:
        InputError: its outputs are not all finite.
        BackendError: ONNX Runtime failed on it.
    """
    run = graph_runner(graph, other.manifest)
    done.expect(len(inputs.cases))
    expected = []
    for case, places in zip(inputs.cases, inputs.places, strict=True):
        expected.append(run(case, places))
        if not np.isfinite(expected[-1]).all():
            raise InputError(
                f"{graph.path} gives outputs that are no numbers for an input of {case.length} tokens, so nothing can "
                "be held against it; validate it against its checkpoint first"
            )
        done.tick("reference", case)
    return Reference(f"{graph.path}, {graph.precision}", expected, is_half=graph.precision != "fp32")
