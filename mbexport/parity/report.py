"""What a comparison found, as plain values: the figures, the inputs behind them, and where a graph went wrong."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figures:
    """A comparison over some inputs.

    ``relative_error`` is the largest error over the spread (largest minus smallest value)
    of all reference outputs; ``cosine`` the smallest over texts (over tokens, where each has
    outputs); ``agreement`` the share of equal predictions, None where none are made.
    """

    rows: int
    max_error: float
    relative_error: float
    cosine: float
    agreement: float | None


@dataclass(frozen=True)
class InputFigures:
    """One input: its tokens, padding and largest error; ``text`` is its number among the texts given, or None."""

    length: int
    padding: str
    max_error: float
    text: int | None = None


@dataclass(frozen=True)
class Disagreement:
    """A prediction that is another one than the reference's.

    ``text``: the input's beginning, or None where it is made of tokens of several texts; ``token``: the place
    of the token whose prediction it is, or None where a text has one; ``margin``: the reference's largest output
    less the one that the graph prefers, so how near a tie it was.
    """

    text: str | None
    length: int
    padding: str
    token: int | None
    expected: str
    found: str
    margin: float


@dataclass(frozen=True)
class Histogram:
    """How many values lie between each two edges: one count less than edges. Below the first edge counts as there."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class StageError:
    """One stage of the model: the error that it makes, and the error that has come together there.

    ``name``: ``embeddings``, ``layers.N.attn``, ``layers.N.mlp``, ``final_norm``, ``pooling`` or ``head``.
    ``kind``: ``embeddings``, ``global attention``, ``local attention``, ``mlp``, ``norm``, ``pooling`` or ``head``.
    ``own``: where the stage is given the reference's input; ``accumulated``: where the whole graph runs. Both are
    of the worst token (or text, behind pooling; of a graph of INT8 or FP8 codes, of all together): the root mean
    square error over the reference's root mean square, infinite where a value is not a number.
    ``limit``: what ``own`` may be.
    """

    name: str
    kind: str
    own: float
    accumulated: float
    limit: float

    @property
    def faulty(self) -> bool:
        """Whether the stage itself is wrong."""
        return not self.own <= self.limit


@dataclass(frozen=True)
class Fault:
    """One cause, and the stages where it was found.

    ``stages``: their names; ``kind``: theirs, as ``StageError.kind``, several joined by "and"; ``part``: what of
    the first stage is the first to be wrong (``Wq``, ``attended``, ``Wo`` ...). ``cause``: a key of
    ``mbexport.parity.diagnosis.causes.CAUSES``; ``explanation``: the same in words. ``evidence``: the error that is
    left where the part is computed with that very fault, as in ``StageError``; None where the cause was not tried out
    but seen. ``tokens`` and ``channels``: which are wrong, in words.
    """

    stages: tuple[str, ...]
    kind: str
    part: str
    cause: str
    explanation: str
    evidence: float | None
    tokens: str
    channels: str


@dataclass(frozen=True)
class Diagnosis:
    """Where one graph goes wrong.

    ``inputs``: what was looked at, in words. ``stages``: in the order of computation; empty where the graph
    does not say which of its values are which. ``faults``: the first one first. ``conclusion``: one sentence.
    """

    inputs: str
    stages: tuple[StageError, ...]
    faults: tuple[Fault, ...]
    conclusion: str


@dataclass(frozen=True)
class OwnError:
    """What half precision costs PyTorch itself: its own run (``what``) against its float32 run, same inputs."""

    what: str
    max_error: float
    cosine: float
    agreement: float | None


@dataclass(frozen=True)
class GraphParity:
    """One graph against the reference: over all, by length and by padding.

    ``limits``: what was asked of ``overall``: the largest ``max_error``, of a graph in half precision
    also the least ``cosine`` and, where predictions are made, the least ``agreement``; empty for a graph that
    is judged by its stages. ``ratio``: its largest error over that of PyTorch's own run in half precision,
    where there was one. ``errors``: of all single outputs, absolute.
    """

    file: str
    precision: str
    passed: bool
    limits: dict[str, float]
    spread: float
    overall: Figures
    by_length: dict[str, Figures]
    by_padding: dict[str, Figures]
    ratio: float | None = None
    inputs: tuple[InputFigures, ...] = ()
    errors: Histogram | None = None
    disagreements: tuple[Disagreement, ...] = ()
    disagreeing: int = 0
    diagnosis: Diagnosis | None = None


@dataclass(frozen=True)
class ParityReport:
    """What ``validate`` found.

    ``subject``: what was validated; ``reference``: against what; ``longest``: tokens of the longest input;
    ``skipped``: graphs that were not compared, and why; ``recorded``: whether the bundle could be written to
    (False too where the subject is no bundle); ``half``: what half precision costs PyTorch itself, where it was
    run; ``environment``: names and versions, for a reader; ``notes``: what else a reader must know.
    """

    passed: bool
    reference: str
    texts: str
    longest: int
    graphs: tuple[GraphParity, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    recorded: bool = True
    subject: str = ""
    half: OwnError | None = None
    environment: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return dataclasses.asdict(self)
