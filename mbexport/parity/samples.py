"""What graphs and reference are compared on: real texts, at every length that could be special."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mbexport.checkpoint.sentence_config import SENTENCE, TOKENS
from mbexport.checkpoint.spec import ModelSpec

IntArray = npt.NDArray[np.int64]

# Around the default window of 64 to either side, around the blocks that local attention is
# computed in, and well beyond. A fault of the window is invisible up to 65 tokens.
LENGTHS = (1, 2, 63, 64, 65, 66, 127, 128, 129, 255, 256, 257, 512, 1024, 2048, 4096, 8191, 8192)
PADDINGS = ("none", "right", "left", "interleaved")
TEXTS_PER_BATCH = 8
VOCABULARY_TOKENS = 32  # of a text, whose logits over the whole vocabulary are compared

# Of several kinds on purpose: short, long, other scripts, emoji, code, numbers, nothing.
TEXTS = (
    "Spectacular",
    "This movie is boring",
    "The central bank raised its main interest rate by a quarter of a point on Thursday, the third rise this year.",
    "She scored twice in the last ten minutes, and the home side held on to win the final by three goals to two.",
    "After months of talks the two parties agreed on a budget, but the vote in parliament was closer than expected.",
    "The phone's new chip is twice as fast as the last one; its battery, sadly, lasts no longer than before.",
    "I wanted to like this film. The actors are good, the music is lovely, and yet nothing happens for two hours.",
    "Not bad at all!",
    "",
    "   leading and trailing blanks   ",
    "Das Wetter bleibt bis zum Wochenende wechselhaft, danach wird es überall deutlich wärmer.",
    "L'équipe de recherche a publié ses résultats dans une revue internationale.",
    "東京の株式市場は三日続けて値上がりした。",
    "Погода сегодня хорошая, но завтра ожидается дождь.",
    "🎉🎉🎉 best day ever!!! 😀👍🏽",
    "for i in range(10):\n    print(f'{i:>3} {i ** 2}')",
    "3.14159 2.71828 1.41421 0.57721 1,234,567.89 -40 6.02e23",
    "WHY IS EVERYTHING IN CAPITALS",
)


@dataclass(frozen=True)
class Case:
    """One forward pass: ids and mask, both [batch, sequence], and the padding of each row.

    ``texts``: of which of the given texts a row is, None where it is made of tokens of several; empty: of none.
    """

    length: int
    input_ids: IntArray
    attention_mask: IntArray
    paddings: tuple[str, ...]
    texts: tuple[int | None, ...] = ()

    @property
    def tokens(self) -> int:
        """All places, padded ones counted."""
        return int(self.input_ids.size)

    def text(self, row: int) -> int | None:
        """The number of the given text that a row is, None where it is none of them."""
        return self.texts[row] if self.texts else None

    def real_tokens(self, per_row: int | None = None) -> IntArray:
        """Places of real tokens in the batch laid out in one row: row * sequence + place.

        Args:
            per_row: that many of a row at most, evenly spread; None for all.
        """
        places = []
        for row, mask in enumerate(self.attention_mask):
            real = np.flatnonzero(mask)
            if per_row is not None and len(real) > per_row:
                real = real[np.linspace(0, len(real) - 1, per_row).astype(np.int64)]
            places.append(row * self.length + real)
        return np.concatenate(places).astype(np.int64)


def places_of(case: Case, spec: ModelSpec) -> IntArray | None:
    """The tokens of a case whose outputs are compared; None where outputs belong to whole texts."""
    stage = spec.sentence or spec.head
    if stage is not None and stage.pooling is not None:
        return None
    return case.real_tokens(VOCABULARY_TOKENS if spec.task == "fill-mask" else None)


def answer_outputs(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the outputs that a comparison takes; two where starts and ends of answers are told."""
    if spec.sentence is not None:
        return (TOKENS if spec.sentence.pooling is None else SENTENCE,)
    if spec.head is None:
        return ("last_hidden_state",)
    return ("start_logits", "end_logits") if spec.task == "question-answering" else ("logits",)


def build_cases(
    token_ids: Sequence[IntArray],
    pad_id: int,
    half_window: int,
    max_length: int,
    seed: int = 0,
    numbers: Sequence[int | None] | None = None,
) -> list[Case]:
    """The texts as they are, then one batch per length: unpadded, and padded in each way.

    Args:
        token_ids: ids of each text, special tokens included.
        pad_id: what stands in padded places.
        half_window: reach of local attention. Padding on the left stays below it: pooling
            the first position reads a padded place there, which is well defined in PyTorch
            only while that place sees a real token.
        max_length: lengths above it are left out.
        seed: of the places that interleaved padding takes.
        numbers: of the texts; None where they have none.
    """
    rng = np.random.default_rng(seed)
    numbered = zip(numbers if numbers is not None else [None] * len(token_ids), token_ids, strict=True)
    texts = sorted(((number, ids[:max_length]) for number, ids in numbered), key=lambda item: len(item[1]))
    cases = [_batch(texts[i : i + TEXTS_PER_BATCH], pad_id) for i in range(0, len(texts), TEXTS_PER_BATCH)]
    stream = np.concatenate(list(token_ids))
    for length in (length for length in LENGTHS if length <= max_length):
        ids = np.resize(stream, (len(PADDINGS), length))  # the texts' tokens, over and over
        for row in range(1, len(PADDINGS)):
            ids[row] = np.roll(ids[row], row * 17)
        mask = np.ones_like(ids)
        if length > 1:
            mask[1, length - max(1, length // 3) :] = 0
            mask[2, : min(max(1, length // 3), max(1, half_window - 1))] = 0
            mask[3, 1:] = rng.random(length - 1) < 0.7
        ids[mask == 0] = pad_id
        cases.append(Case(length, ids, mask, PADDINGS if length > 1 else ("none",) * len(PADDINGS)))
    return cases


def _batch(texts: Sequence[tuple[int | None, IntArray]], pad_id: int) -> Case:
    """Texts, each with its number, padded on the right to the longest of them."""
    length = max(len(text) for _, text in texts)
    ids = np.full((len(texts), length), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, (_, text) in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    paddings = tuple("none" if len(text) == length else "right" for _, text in texts)
    return Case(length, ids, mask, paddings, tuple(number for number, _ in texts))
