"""What half precision costs PyTorch itself: the measure of graphs in half precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mbexport.checkpoint.load import Checkpoint
from mbexport.parity.figures import FloatArray, Outputs, compare
from mbexport.parity.graphs.runners import Counter
from mbexport.parity.inputs import Inputs
from mbexport.parity.limits import Terms
from mbexport.parity.pytorch.reference import TorchReference
from mbexport.parity.report import OwnError

# Tokens of the longest input of PyTorch's own run in float16 on a CPU, which has no FP16 products there and takes
# several times as long as in float32 (22 layers of 768: 24 s for four texts of 512 tokens, float32 10 s; two cores of
# an AMD EPYC). The error does not grow with the length: it is largest below 130 tokens in most models measured.
LONGEST_ON_CPU = 512
HALVES = (torch.float16, torch.bfloat16)


def flash_reference(checkpoint: Checkpoint, inputs: Inputs, done: Counter) -> tuple[TorchReference, list[FloatArray]]:
    """FlashAttention's unpadded path on the GPU, in float16, or in bfloat16 where that overflows, and its outputs.

    What cannot be run without an NVIDIA GPU and flash-attn; it has never been run.
    """
    for dtype in HALVES:
        model = TorchReference(checkpoint, "flash_attention_2", dtype)
        values = run_all(model, inputs, done, "flash_attention_2")
        if all(np.isfinite(value).all() for value in values):
            break
    return model, values


def run_all(model: TorchReference, inputs: Inputs, done: Counter, what: str) -> list[FloatArray]:
    """The outputs of all cases."""
    values = []
    for case, places in zip(inputs.cases, inputs.places, strict=True):
        values.append(model.run(case, places))
        done.tick(what, case)
    return values


def own_error_on_cpu(
    checkpoint: Checkpoint, inputs: Inputs, exact: Sequence[FloatArray], terms: Terms, done: Counter
) -> OwnError:
    """How far PyTorch's own run in float16 is from its run in float32, on inputs of up to LONGEST_ON_CPU tokens.

    Args:
        checkpoint: the model.
        inputs: the cases; some are no longer than that, as those of two and of one token are in every comparison.
        exact: the outputs in float32.
        terms: what a prediction is.
        done: counts the passes.
    """
    chosen = [number for number, case in enumerate(inputs.cases) if case.length <= LONGEST_ON_CPU]
    cases, places = [inputs.cases[n] for n in chosen], [inputs.places[n] for n in chosen]
    longest = max(case.length for case in cases)
    done.expect(len(chosen))
    model = TorchReference(checkpoint, "sdpa", torch.float16)
    found = run_all(model, Inputs(cases, places, (), ""), done, "PyTorch in float16")
    what = model.description
    if longest < inputs.longest:
        what += f", on inputs of up to {longest} tokens"
    return own_error(what, Outputs(cases, places, [exact[n] for n in chosen], found), terms)


def own_error(what: str, outputs: Outputs, terms: Terms) -> OwnError:
    """The figures of PyTorch in half precision against PyTorch in float32; says so where they are not finite."""
    overall = compare("", outputs, terms).overall
    if not np.isfinite(overall.max_error):
        what += "; it overflows, so that limits for graphs in half precision are those of models in general"
    return OwnError(what, overall.max_error, overall.cosine, overall.agreement)
