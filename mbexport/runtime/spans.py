"""Start and end logits to the best answer in a context: numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np

from mbexport.runtime.heads import FloatArray, scores
from mbexport.runtime.text import Encoded

LONGEST_ANSWER = 64  # tokens


def best_span(start_logits: FloatArray, end_logits: FloatArray, encoded: Encoded, context: str) -> dict[str, Any]:
    """The span of the context with the largest product of start and end probability.

    Args:
        start_logits: [tokens].
        end_logits: [tokens].
        encoded: the tokens of question and context.
        context: the second segment.

    Returns:
        ``{"answer", "score", "start", "end"}``: context[start:end], blanks at its ends left
        out. Probabilities are over the context's tokens. An empty context has an empty answer.
    """
    words = encoded.words_of(1)
    if not words:
        return {"answer": "", "score": 0.0, "start": 0, "end": 0}
    tokens = [token for token, *_ in words]
    # Sums of logits: products of probabilities may all be 0.
    starts, ends = start_logits[tokens].astype(np.float64), end_logits[tokens].astype(np.float64)
    best = (-np.inf, 0, 0)  # sum, first, last
    for length in range(min(LONGEST_ANSWER, len(tokens))):
        sums = starts[: len(tokens) - length] + ends[length:]
        first = int(np.argmax(sums))
        best = max(best, (float(sums[first]), first, first + length), key=lambda candidate: candidate[0])
    _, first, last = best
    score = float(scores(start_logits[tokens], "softmax")[first] * scores(end_logits[tokens], "softmax")[last])
    piece = context[words[first][2] : words[last][3]]
    start = words[first][2] + len(piece) - len(piece.lstrip())
    answer = piece.strip()
    return {"answer": answer, "score": score, "start": start, "end": start + len(answer)}
