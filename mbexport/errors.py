"""Every error mbexport raises on purpose; the command line turns each into one line."""

from __future__ import annotations


class MbexportError(Exception):
    """Root of them all. The message says what was found, what was expected, what to do."""


class CheckpointError(MbexportError):
    """A checkpoint directory cannot be exported: missing, damaged or not supported."""


class BundleError(MbexportError):
    """A bundle cannot be read or written: missing, damaged, or its place is taken."""


class InputError(MbexportError):
    """Texts, files or options given by the caller cannot be used."""


class BackendError(MbexportError):
    """The engine underneath (ONNX Runtime) refused to load or run a graph."""


class NotFiniteError(BackendError):
    """What a model gives for a text is no number: NaN or infinity. Other texts have their answers."""


class GraphError(MbexportError):
    """The graph builder broke one of its own invariants: a fault of mbexport's."""


class PrecisionError(MbexportError):
    """A model cannot be computed in the precision that was asked for."""


class MissingExtraError(MbexportError):
    """An optional package is needed and not installed."""


class ContenderError(MbexportError):
    """A contender of a benchmark could not be loaded or run; its row says so, the others go on."""


class EngineError(MbexportError):
    """TensorRT could not build an engine."""


class BusyError(MbexportError):
    """A batcher's queue is full; nothing is wrong with the text, which can be sent again later."""


class ClosedError(MbexportError):
    """A batcher was closed, or belongs to another process, and takes or finishes nothing more."""


class DeadlineError(MbexportError, TimeoutError):
    """No answer within the time that the caller gave."""


def is_refusal(error: BaseException) -> bool:
    """Whether a library refused what it was given: by an Exception, or by a panic of Rust code, which is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
