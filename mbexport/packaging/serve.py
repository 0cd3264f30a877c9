"""What Triton's Python backend runs: texts to tokens, the graph by a call within Triton, its outputs to answers.

``model.py`` of a repository imports :class:`TritonPythonModel` from here, so that a repository holds no code
of its own. Answers are those of :mod:`mbexport.runtime`, whose model has another model of Triton's as its backend.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils  # Triton's own; there is none elsewhere

from mbexport import manifest as manifests
from mbexport.errors import BackendError, InputError, MbexportError
from mbexport.manifest import Manifest
from mbexport.profiles import Profile, parse_profiles
from mbexport.runtime.answers import Prepared
from mbexport.runtime.backends.interface import Backend, FloatArray, IntArray
from mbexport.runtime.backends.tensors import inputs_of, selected
from mbexport.runtime.batches import Limits, plan_batches
from mbexport.runtime.model import Model
from mbexport.runtime.plain import plain
from mbexport.runtime.schedule import MOST_TOKENS, Run, plan_runs
from mbexport.runtime.text import bundle_encoder

T = TypeVar("T")
OPTIONS = ("prompt_name", "truncate_dim")  # of a request, as its parameters
RESERVED = "triton_"  # parameters of Triton's own begin so


class TritonBackend:
    """The graph, as another model of the same Triton.

    Args:
        settings: see :func:`mbexport.packaging.config.text_config`.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._model = settings["graph_model"]
        self._outputs = settings["outputs"].split(",")
        self._selects = settings["selects_tokens"] == "yes"
        self.per_token = frozenset(filter(None, settings["per_token"].split(",")))
        self.description = f"{self._model} on Triton"
        self.packs = False  # engines and graphs of packed rows are not packaged
        self.device = "cpu" if settings["device"] == "cpu" else "cuda"

    def width(self, output: str) -> int:
        """Not known here, and not needed for answers.

        Raises:
            BackendError: always.
        """
        raise BackendError(f"{self._model} does not tell the width of {output}; see its config.pbtxt")

    def run(
        self,
        input_ids: IntArray,
        attention_mask: IntArray,
        positions: IntArray | None = None,
        wanted: Sequence[str] | None = None,
    ) -> dict[str, FloatArray]:
        """One forward pass, as :meth:`mbexport.runtime.backends.interface.Backend.run` says.

        Raises:
            BackendError: Triton refused the call, or the model failed.
        """
        inputs = inputs_of(input_ids, attention_mask, packs=self.packs)
        if positions is not None and self._selects:
            inputs["positions"] = positions
        response = pb_utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=list(wanted or self._outputs),
            inputs=[pb_utils.Tensor(name, values) for name, values in inputs.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise BackendError(f"{self._model}: {response.error().message()}")
        outputs = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        if positions is None or self._selects:
            return outputs
        return selected(outputs, positions, self.per_token)


class InOrder:
    """The executor of :class:`mbexport.runtime.Model`: runs one after the other, planned for the other model's device.

    Args:
        settings: see :func:`mbexport.packaging.config.text_config`.
        manifest: of the repository; with an engine, its profiles say what shapes there are.
    """

    def __init__(self, settings: Mapping[str, str], manifest: Manifest) -> None:
        self.all: Backend = TritonBackend(settings)
        self._most_texts = int(settings["most_texts"])
        profiles = tuple(profile for engine in manifest.engines for profile in parse_profiles(engine.profile))
        if settings["device"] == "cpu":
            self._limits = None
            self.batch_tokens = MOST_TOKENS
        else:
            graph = Profile((1, 1), (1, 1), (self._most_texts, manifest.max_length))
            self._limits = Limits(profiles or (graph,), int(settings["most_tokens"]))
            self.batch_tokens = self._limits.tokens

    def check(self, prepared: Prepared) -> None:
        """Refuse what is longer than every profile of an engine takes.

        Raises:
            InputError: says how long it may be.
        """
        if self._limits is not None:
            for part in prepared.parts:
                self._limits.row(len(part.ids))

    def plan(self, lengths: Sequence[int]) -> list[Run]:
        """Runs of all texts, no more of them in one than the other model takes."""
        if self._limits is not None:
            return plan_batches(lengths, self._limits)
        most = self._most_texts
        return [
            Run(run.texts[first : first + most], run.length)
            for run in plan_runs(lengths)
            for first in range(0, len(run.texts), most)
        ]

    def map(self, forward: Callable[[Backend, Run], T], runs: Sequence[Run]) -> Iterator[tuple[Run, T]]:
        """Each run and what ``forward`` makes of it."""
        for run in runs:
            yield run, forward(self.all, run)


@dataclass
class Call:
    """One request: its texts, their answers as they come, or what is wrong with it."""

    items: list[Any] = field(default_factory=list)
    options: tuple[Any, ...] = (None, None)  # prompt_name, truncate_dim
    prepared: list[Prepared] = field(default_factory=list)
    answers: dict[int, Any] = field(default_factory=dict)
    error: Any = None  # Triton's

    @property
    def open(self) -> bool:
        """Whether it still wants answers."""
        return self.error is None and len(self.answers) < len(self.items)


class TritonPythonModel:
    """The class that Triton looks for: texts in, answers out, a response for each request."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the tokenizer and the manifest beside ``model.py``.

        Raises:
            BundleError: one of them is missing or damaged; Triton then does not load the model.
        """
        config = json.loads(args["model_config"])
        settings = {key: value.get("string_value", "") for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        manifest = manifests.read(folder)
        self._executor = InOrder(settings, manifest)
        self._model = Model(manifest, bundle_encoder(folder, manifest), self._executor)
        self._most_bytes = int(settings["most_bytes"])
        self._second = next((item["name"] for item in config["input"] if item["name"] != "TEXT"), None)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request, in order; what is wrong with one is no error of the others."""
        calls = [self._read(request) for request in requests]
        self._prepare(calls)
        self._answer([call for call in calls if call.open])
        for call in calls:
            if call.open:  # the pass failed that it was in: once more, without the others
                self._answer([call], last=True)
        return [self._response(call) for call in calls]

    def _read(self, request: Any) -> Call:
        if request.is_cancelled():
            return Call(error=pb_utils.TritonError("the request was cancelled", pb_utils.TritonError.CANCELLED))
        try:
            return Call(self._items(request), self._options(request))
        except InputError as cause:
            return Call(error=_error(cause))

    def _items(self, request: Any) -> list[Any]:
        """The items as the runtime's model takes them, one a row."""
        first = self._texts(request, "TEXT")
        second = self._texts(request, self._second) if self._second else None
        if not first:
            raise InputError("the request has no TEXT")
        if second is None:
            return [row[0] for row in first]
        if len(first) != len(second):
            raise InputError(f"TEXT has {len(first)} rows and {self._second} {len(second)}, expected as many")
        if self._second == "CHOICES":
            return [(row[0], choices) for row, choices in zip(first, second, strict=True)]
        return [(row[0], pair[0]) for row, pair in zip(first, second, strict=True)]

    def _texts(self, request: Any, name: str) -> list[list[str]] | None:
        """The rows of an input, None where the request has it not.

        Raises:
            InputError: bytes that are no UTF-8, or more of them than are tokenized.
        """
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        rows = tensor.as_numpy()
        longest = max((len(item) for item in rows.flat), default=0)
        if longest > self._most_bytes:
            raise InputError(
                f"{name} has a text of {longest} bytes, expected at most {self._most_bytes} (see config.pbtxt)"
            )
        try:
            return [[item.decode("utf-8") for item in row] for row in rows]
        except UnicodeDecodeError as cause:
            raise InputError(f"{name} is not UTF-8: {cause}") from cause

    def _options(self, request: Any) -> tuple[Any, ...]:
        """``prompt_name`` and ``truncate_dim`` of a request.

        Raises:
            InputError: another parameter, which would be ignored otherwise, or one of another kind.
        """
        given = json.loads(request.parameters() or "{}")
        has = OPTIONS if self._model.manifest.task == "feature-extraction" else ()
        unknown = [name for name in given if name not in has and not name.startswith(RESERVED)]
        if unknown:
            raise InputError(f"this model takes no parameter {unknown[0]!r}; it takes {', '.join(has) or 'none'}")
        prompt, size = (given.get(name) for name in OPTIONS)
        if not isinstance(prompt, (str, type(None))) or type(size) not in (int, type(None)):
            raise InputError(f"prompt_name is {prompt!r} and truncate_dim {size!r}, expected a text and a whole number")
        return prompt, size

    def _prepare(self, calls: Sequence[Call]) -> None:
        """Tokenize, all requests of the same options together; where that fails, each alone."""
        groups: dict[tuple[Any, ...], list[Call]] = {}
        for call in calls:
            if call.open:
                groups.setdefault(call.options, []).append(call)
        for group in groups.values():
            if self._tokenize(group) is not None:
                for call in group:
                    fault = self._tokenize([call])
                    call.error = None if fault is None else _error(fault)

    def _tokenize(self, calls: Sequence[Call]) -> InputError | None:
        """Tokenize the items of calls with the same options; what is wrong with one of them."""
        try:
            self._tokenize_all(calls)
        except InputError as cause:
            return cause
        return None

    def _tokenize_all(self, calls: Sequence[Call]) -> None:
        prepared = iter(self._model.prepare([item for call in calls for item in call.items], *calls[0].options))
        for call in calls:
            call.prepared = [next(prepared) for _ in call.items]
            for item in call.prepared:
                self._executor.check(item)

    def _answer(self, calls: Sequence[Call], *, last: bool = False) -> None:
        """Run the graph. With ``last`` what fails is the calls' error, else they stay open."""
        places = [(call, number) for call in calls for number in range(len(call.prepared))]
        try:
            for place, answer in self._model.answers([call.prepared[number] for call, number in places]):
                call, number = places[place]
                call.answers[number] = answer
        except MbexportError as cause:
            for call in calls:
                if last and call.open:
                    call.error = _error(cause)

    def _response(self, call: Call) -> Any:
        try:
            if call.error is None:
                return pb_utils.InferenceResponse(self._outputs([call.answers[n] for n in range(len(call.items))]))
        except BackendError as cause:
            call.error = _error(cause)
        return pb_utils.InferenceResponse([], error=call.error)

    def _outputs(self, answers: Sequence[Any]) -> list[Any]:
        """Answers [texts, 1] as JSON, vectors [texts, size], or of each token [texts, tokens, size]."""
        manifest = self._model.manifest
        if manifest.task != "feature-extraction":
            texts = np.array([[_json(answer)] for answer in answers], dtype=np.object_)
            return [pb_utils.Tensor("ANSWER", texts)]
        if manifest.pooling is not None:
            return [pb_utils.Tensor("EMBEDDING", np.stack(answers))]
        lengths = np.array([[len(answer)] for answer in answers], dtype=np.int32)
        padded = np.zeros((len(answers), int(lengths.max()), answers[0].shape[1]), np.float32)
        for row, answer in zip(padded, answers, strict=True):
            row[: len(answer)] = answer
        return [pb_utils.Tensor("TOKEN_EMBEDDINGS", padded), pb_utils.Tensor("TOKENS", lengths)]


def _json(answer: Any) -> bytes:
    try:
        return json.dumps(plain(answer), ensure_ascii=False).encode()
    except ValueError as cause:
        raise BackendError(str(cause)) from cause


def _error(cause: MbexportError) -> Any:
    """Triton's error: of the request where its input is wrong, else of the server."""
    kind = pb_utils.TritonError.INVALID_ARG if isinstance(cause, InputError) else pb_utils.TritonError.INTERNAL
    return pb_utils.TritonError(str(cause), kind)
