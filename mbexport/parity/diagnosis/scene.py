"""What a cause is tried out on: the reference's values around one stage, and the checkpoint's weights."""

from __future__ import annotations

import numpy as np

from mbexport.bundle.weights import SEPARATED
from mbexport.checkpoint.spec import ModelSpec
from mbexport.checkpoint.weights import EMBEDDINGS, Weights, expected_tensors
from mbexport.parity.diagnosis.taps import Stage, Taps
from mbexport.parity.figures import FloatArray
from mbexport.parity.samples import Case, IntArray, places_of

# Parts of transformers' joined projections: the whole, which part of it, of how many.
JOINED = {part: (whole, number, len(parts)) for whole, parts in SEPARATED.items() for number, part in enumerate(parts)}


class Scene:
    """One stage of the reference, on one case.

    A unit is a real token, in stages behind pooling a text; of the head of a masked language model, a token
    whose outputs are compared.

    Args:
        spec: the model.
        case: the input.
        stage: the stage.
        reference: all that the reference computed in the stage and before it.
        weights: the checkpoint's; None where there is none.

    Attributes:
        places: of the units in the batch laid out in one row; None where units are texts.
    """

    def __init__(self, spec: ModelSpec, case: Case, stage: Stage, reference: Taps, weights: Weights | None) -> None:
        self.spec, self.case, self.stage, self.reference = spec, case, stage, reference
        self._weights = weights
        self._expected = expected_tensors(spec)
        outputs = places_of(case, spec)
        of_texts = outputs is None and stage.kind in ("pooling", "head")
        self.places = None if of_texts else outputs if stage.kind == "head" else case.real_tokens()

    def units(self, array: FloatArray) -> FloatArray:
        """Values of a module as [units, width]."""
        if array.ndim == 3 and self.places is not None:
            return array.reshape(-1, array.shape[-1])[self.places]
        return array

    def expected(self, module: str) -> FloatArray:
        """The reference's values, [units, width]."""
        return self.units(self.reference[module])

    @property
    def layer(self) -> int:
        """The number of the stage's layer."""
        return int(self.stage.name.split(".")[1])

    def matrix(self, module: str) -> FloatArray | None:
        """A module's weight, [out, in] or [width]; None where the model has none."""
        return self._tensor(module, "weight")

    def bias(self, module: str) -> FloatArray | float:
        """A module's bias, [out]; 0 where it has none."""
        bias = self._tensor(module, "bias")
        return 0.0 if bias is None else bias

    def _tensor(self, module: str, kind: str) -> FloatArray | None:
        head = self.spec.head
        if kind == "weight" and head is not None and head.tied and module == head.last_layer:
            module = EMBEDDINGS.rpartition(".")[0]
        parent, _, name = module.rpartition(".")
        joined, part, parts = JOINED.get(name, (name, 0, 1))
        stored = f"{parent}.{joined}.{kind}" if parent else f"{joined}.{kind}"
        if self._weights is None or stored not in self._expected:
            return None
        _, array = next(self._weights.read([stored]))
        return np.split(array, parts)[part]


def spread_sample(errors: FloatArray, worst: int, others: int) -> IntArray:
    """The units with the largest errors, and some others evenly, ascending; errors [units]."""
    ranked = np.argsort(-np.nan_to_num(errors, nan=np.inf, posinf=np.inf), kind="stable")[:worst]
    even = np.linspace(0, len(errors) - 1, min(others, len(errors))).astype(np.int64)
    return np.unique(np.concatenate([ranked, even])).astype(np.int64)
