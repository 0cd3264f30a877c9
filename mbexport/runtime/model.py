"""``load(bundle)``: one object that takes texts and gives answers."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from mbexport import manifest as manifests
from mbexport.errors import BundleError, InputError, NotFiniteError
from mbexport.manifest import Manifest
from mbexport.options import DEVICES
from mbexport.runtime.answers import Prepared, answer, items_of, parts_of
from mbexport.runtime.backends.interface import Backend, IntArray
from mbexport.runtime.forward import Outputs, forward, not_finite
from mbexport.runtime.heads import FloatArray
from mbexport.runtime.schedule import Run
from mbexport.runtime.start import Executor, Wish, check_outputs, run_once, start
from mbexport.runtime.text import Encoded, TextEncoder, bundle_encoder, check_masks, with_prompt
from mbexport.texts import Text

MOST_THREADS = 1024


class TruncationWarning(UserWarning):
    """Texts were longer than the model's max_length, and were cut."""


class Model:
    """A loaded bundle; made by :func:`load`. Safe to call from several threads.

    What it holds of a GPU's memory is given back when nothing refers to it any more.

    Attributes:
        manifest: the bundle's manifest.
        description: the file, runtime and provider really in use.
        device: what really computes, ``cpu`` or ``cuda``.
        truncated: how many texts were cut to ``manifest.max_length`` tokens so far.
    """

    def __init__(self, manifest: Manifest, encoder: TextEncoder, executor: Executor) -> None:
        self.manifest = manifest
        self.description = executor.all.description
        self.device = executor.all.device
        self.truncated = 0
        self._encoder = encoder
        self._executor = executor
        self._lock = threading.Lock()
        self._mask_id = encoder.token_id(manifest.mask_token) if manifest.mask_token else None

    def __call__(self, texts: Sequence[Any]) -> list[Any]:
        """One answer per text, in order.

        Args:
            texts: each a str; a pair of str for cross-encoders; (question, context) for
                question answering; (text, [choice, ...]) for multiple choice.

        Returns:
            By task: text classification ``{"label", "score"}``, with ``"scores"`` by label
            where labels do not exclude one another; token classification a list of
            ``{"entity_group", "score", "word", "start", "end"}``; question answering
            ``{"answer", "score", "start", "end"}``; multiple choice ``{"label", "score",
            "choice", "scores"}``; fill-mask, for each mask, a list of ``{"token",
            "token_str", "score"}``; an encoder a float32 vector [size], or without pooling
            one per token, [tokens, size].

        Raises:
            InputError: an item is no text, not what the task takes, or has a token that the model does not have.
            NotFiniteError: the model gives NaN or infinity for an item; no method returns that.
            BackendError: the forward pass failed.
        """
        prepared = self.prepare(texts)
        answers = dict(self.answers(prepared))
        return [answers[number] for number in range(len(prepared))]

    def prepare(
        self, texts: Sequence[Any], prompt_name: str | None = None, truncate_dim: int | None = None
    ) -> list[Prepared]:
        """Check and tokenize items, for :meth:`answers`: on any thread, apart from the forward pass.

        Args:
            texts: as :meth:`__call__` takes them.
            prompt_name: see :meth:`embed`.
            truncate_dim: see :meth:`embed`.

        Raises:
            InputError: an item is no text, not what the task takes, or has a token that the model does not have;
                no such prompt.
        """
        if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
            raise InputError(f"truncate_dim is {truncate_dim!r}, expected a whole number from 1, or None")
        items = items_of(texts)
        parts = parts_of(items, self.manifest.task)
        encoded = iter(self._encode(list(chain.from_iterable(parts)), prompt_name))
        return [
            Prepared(item, tuple(islice(encoded, len(own))), truncate_dim)
            for item, own in zip(items, parts, strict=True)
        ]

    def answers(self, prepared: Sequence[Prepared]) -> Iterator[tuple[int, Any]]:
        """Number and answer of each item as soon as it is computed, which is not in order.

        Raises:
            NotFiniteError: what the model gives for an item is NaN or infinity; all that have answers were given.
            BackendError: a forward pass failed; what was not yet given has no answer then.
        """
        owners = [number for number, item in enumerate(prepared) for _ in item.parts]
        firsts = list(accumulate((len(item.parts) for item in prepared), initial=0))
        outputs: dict[int, dict[int, Outputs]] = {}  # of items whose parts have not all come, by part
        for part, output in self._results([part.ids for item in prepared for part in item.parts]):
            number = owners[part]
            found = outputs.setdefault(number, {})
            found[part - firsts[number]] = output
            if len(found) == len(prepared[number].parts):
                del outputs[number]
                in_order = [found[place] for place in range(len(found))]
                yield number, answer(prepared[number], in_order, self.manifest, self._encoder.decode)

    def check(self) -> None:
        """Run the model once, on one token, on the device that it computes on.

        Raises:
            BackendError: the forward pass failed: the device is lost, or its memory is full.
        """
        run_once(self._executor.all, self.manifest)

    @property
    def batch_tokens(self) -> int:
        """Tokens that keep the device busy: more in one call make a token no cheaper."""
        return self._executor.batch_tokens

    def logits(self, texts: Sequence[Text]) -> FloatArray:
        """Raw outputs of a text classifier, float32 [texts, labels], all finite.

        Raises:
            InputError: the model is none, or an item is no text.
            NotFiniteError, BackendError: see :meth:`__call__`.
        """
        if self.manifest.task != "text-classification":
            raise InputError(f"a {self.manifest.task} bundle has no logits of whole texts; use outputs() or embed()")
        rows = [output["logits"] for output in self.outputs(texts)]
        return np.stack(rows) if rows else np.empty((0, self._executor.all.width("logits")), np.float32)

    def embed(
        self, texts: Sequence[Text], prompt_name: str | None = None, truncate_dim: int | None = None
    ) -> FloatArray:
        """One vector per text, float32 [texts, size], pooled as the manifest says.

        Args:
            texts: the texts.
            prompt_name: of a prompt of the model's to put before each text; None takes its
                default, if it has one.
            truncate_dim: keep that many numbers of a vector (Matryoshka), brought back to
                length 1 where the model's vectors have it; None takes the model's own setting.

        Raises:
            InputError: the model has no vectors of texts, no such prompt, or an item is no text.
            NotFiniteError, BackendError: see :meth:`__call__`.
        """
        manifest = self.manifest
        if manifest.task != "feature-extraction" or manifest.pooling is None:
            raise InputError(f"a {manifest.task} bundle has no embeddings of texts; use outputs()")
        prepared = self.prepare(texts, prompt_name, truncate_dim)
        width = self._executor.all.width("last_hidden_state" if manifest.sentence is None else "sentence_embedding")
        size = truncate_dim or (manifest.sentence.truncate_dim if manifest.sentence else None) or width
        vectors = np.empty((len(prepared), min(size, width)), np.float32)
        for number, vector in self.answers(prepared):
            vectors[number] = vector
        return vectors

    def outputs(self, texts: Sequence[Text]) -> list[Outputs]:
        """The graph's outputs for each text, by name, without a batch axis.

        For fill-mask, ``logits`` [masks, vocabulary] of the masks only; of a sentence-transformers
        pipeline ``sentence_embedding``, or without pooling ``token_embeddings``.

        Raises:
            InputError: an item is no text, or has no mask where one is to be filled.
            NotFiniteError, BackendError: see :meth:`__call__`.
        """
        return self._outputs([item.ids for item in self._encode(items_of(texts), None)])

    def outputs_of_tokens(self, token_ids: Iterable[IntArray]) -> list[Outputs]:
        """The graph's outputs for token ids already made, as :meth:`outputs` gives them for texts.

        Args:
            token_ids: of each text, int64 [tokens], special tokens included.

        Raises:
            InputError: an item is no such array, has more tokens than the model takes, or an id that it does not have.
            NotFiniteError, BackendError: see :meth:`__call__`.
        """
        token_ids = list(token_ids)
        for number, ids in enumerate(token_ids):
            if not isinstance(ids, np.ndarray) or ids.dtype != np.int64 or ids.ndim != 1:
                raise InputError(f"item {number} is no one-dimensional NumPy array of int64")
            if not 0 < len(ids) <= self.manifest.max_length:
                raise InputError(f"item {number} has {len(ids)} tokens, expected 1 to {self.manifest.max_length}")
            if ids.min() < 0:
                raise InputError(f"item {number} holds the id {ids.min()}; ids count from 0")
            self._encoder.check_ids(ids, f"item {number}")
        if self._mask_id is not None:
            check_masks(token_ids, self._mask_id, self.manifest)
        return self._outputs(token_ids)

    def _encode(self, texts: Sequence[Text], prompt_name: str | None) -> list[Encoded]:
        encoded = self._encoder.encode(with_prompt(texts, self.manifest.sentence, prompt_name))
        for number, item in enumerate(encoded):
            if not len(item.ids):
                raise InputError(f"text {number} has no tokens; this tokenizer adds none of its own to an empty text")
        if self._mask_id is not None:
            check_masks([item.ids for item in encoded], self._mask_id, self.manifest)
        self._count_truncated(sum(item.truncated for item in encoded), len(encoded))
        return encoded

    def _outputs(self, token_ids: Sequence[IntArray]) -> list[Outputs]:
        """The outputs of each text, in order."""
        rows: list[Outputs] = [{}] * len(token_ids)
        for number, row in self._results(token_ids):
            rows[number] = row
        return rows

    def _results(self, token_ids: Sequence[IntArray]) -> Iterator[tuple[int, Outputs]]:
        """Number and outputs of each text as they are computed; last those that are numbers in a run alone only.

        Raises:
            NotFiniteError: names the first text without; all others were given.
        """
        doubtful, bad = [], []
        for number, row in self._computed(token_ids):
            if not_finite(row):
                doubtful.append(number)
            else:
                yield number, row
        for number in doubtful:  # what is no number may be padding, or another text of its row
            ((_, row),) = self._computed([token_ids[number]])
            if names := not_finite(row):
                bad.append((number, " and ".join(names)))
            else:
                yield number, row
        if bad:
            number, what = bad[0]
            raise NotFiniteError(
                f"text {number}: {self.description} gives {what} with NaN or infinity, as values in it overflow; "
                "find out where with mbexport validate, or load the bundle in another precision"
            )

    def _computed(self, token_ids: Sequence[IntArray]) -> Iterator[tuple[int, Outputs]]:
        """Number and outputs of each text as they are computed, whatever they are."""

        def one(backend: Backend, run: Run) -> list[Outputs]:
            return forward(backend, run, token_ids, self.manifest, self._mask_id)

        runs = self._executor.plan([len(ids) for ids in token_ids])
        for run, rows in self._executor.map(one, runs):
            yield from zip(run.texts, rows, strict=True)

    def _count_truncated(self, cut: int, total: int) -> None:
        with self._lock:
            first = cut > 0 and self.truncated == 0
            self.truncated += cut
        if first:
            warnings.warn(
                f"{cut} of {total} texts had more than {self.manifest.max_length} tokens and were cut; "
                "said once, counted in .truncated",
                TruncationWarning,
                stacklevel=2,
            )


def load(
    bundle: str | os.PathLike[str],
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    *,
    share_cores: bool = True,
) -> Model:
    """Load a bundle.

    Args:
        bundle: a directory that ``mbexport onnx`` wrote.
        device: ``cpu``; ``cuda`` for the first GPU that this process sees; ``auto`` for that GPU where
            there is one and something here can use it, else the CPU. On a GPU an engine is used that was
            built by the installed release of TensorRT-RTX for its compute capability, or of TensorRT on
            its very model, else ONNX Runtime's CUDA provider, else the CPU. Each step down is warned of,
            with the reasons (FallbackWarning), also where ``cuda`` was asked for: ``device`` of the model
            says what is in use, ``cuda`` or ``cpu``, for a service that must not run on the CPU.
        precision: ``auto`` or a precision that the bundle has, e.g. ``fp32``. ``auto`` takes an engine of
            int8, fp8, fp16, bf16 or fp32, in that order; on the CPU an int8 graph, else fp32; through ONNX
            Runtime's CUDA provider fp32. What is int8 or fp8 it takes only where its quality gate passed;
            named, it is used in any case, and a doubt is warned of (QualityWarning). Of the int8 graphs
            that one is used which this CPU computes exactly. ``bf16`` and ``fp8`` need a GPU.
        threads: cores to use; None leaves them to ONNX Runtime, and takes for texts side by side
            all that this process may use.
        share_cores: on a CPU, whether texts of one call may run side by side, one core each. It is faster;
            the first such call waits for a second session to load, and from then on weights that ONNX
            Runtime packs (without mbexport's kernels, or of INT8) are in memory twice.

    Raises:
        BundleError: no bundle there, a file of it missing, cut short or changed, a graph of another task or with
            tensors in other places, no such precision, or an int8 graph in which this CPU would saturate.
        InputError: no such device, ``cuda`` where there is no GPU, or ``bf16`` or ``fp8`` where none is used.
        BackendError: ONNX Runtime refuses the graph.
    """
    if device not in DEVICES:
        raise InputError(f"device is {device!r}, expected one of {', '.join(DEVICES)}")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
        raise InputError(f"threads is {threads!r}, expected a whole number from 1 to {MOST_THREADS}, or None")
    directory = Path(bundle)
    manifest = manifests.read(directory)
    manifests.check_files(directory, manifest)
    with ThreadPoolExecutor(1) as other_core:  # a tokenizer of 50,000 words takes a third of a graph's time
        loading = other_core.submit(bundle_encoder, directory, manifest)
        executor = start(directory, manifest, Wish(device, precision, threads, share_cores))
        encoder = loading.result()
    if manifest.task == "fill-mask" and (not manifest.mask_token or encoder.token_id(manifest.mask_token) is None):
        raise BundleError(
            f"{directory}: the mask token {manifest.mask_token!r} is not in tokenizer.json; "
            "set mask_token in the checkpoint's tokenizer_config.json and export again"
        )
    check_outputs(directory, manifest, executor.all)
    labels = len(manifest.labels or ())
    if manifest.task in ("text-classification", "token-classification") and executor.all.width("logits") != labels:
        found = f"{executor.all.description} {executor.all.width('logits')}"
        raise BundleError(f"{directory}: the manifest has {labels} labels, {found}; export again")
    return Model(manifest, encoder, executor)
