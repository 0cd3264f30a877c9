"""Defaults and choices that commands and functions share. Standard library only."""

from __future__ import annotations

DEFAULT_BUNDLE = "mbexport-out"
DEFAULT_VOCABULARY = 50_368  # rows of the embedding where config.json does not say, as in transformers
DEFAULT_MAX_LENGTH = 2048  # tokens of the longest input that validate compares on
REFERENCES = ("auto", "flash_attention_2", "sdpa", "eager")  # PyTorch's attention implementations
DEVICES = ("auto", "cpu", "cuda")  # that the runtime loads a bundle on
RUNTIME_PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8", "fp8")  # that it loads a bundle in
QUANTIZED = ("int8", "fp8")  # made by mbexport int8: no bound holds them, only a measurement tells what they cost
ENGINE_PRECISIONS = ("fp16", "bf16", "fp32", *QUANTIZED)
BUILDER_MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}  # that build, and run what was built
BUILDERS = ("auto", *BUILDER_MODULES)
MIN_AGREEMENT = 99.0  # percent of predictions of an INT8 graph that are those of the FP32 graph
MAX_F1_DROP = 0.5  # points of macro-F1 that an INT8 graph may lose
MIN_SIMILARITY = 0.99  # of an INT8 graph's embeddings (mean cosine) or scores (coefficient of determination)
CALIBRATION_TEXTS, HELD_OUT_TEXTS = 256, 1000  # at most
# Of the spread of FP32's answers, its largest minus its smallest value: what an FP32 peer's may differ by. INT8 is
# judged on texts by its quality gate, for which random ids are no substitute; the second number finds what is broken.
LARGEST_ERROR, LARGEST_INT8_ERROR = 1e-3, 0.25
INT8_MAX_LENGTH = 512  # tokens of the longest text that calibration and quality gate read
DEFAULT_REPOSITORY = "triton-models"
PACKAGE_FORMATS = ("triton",)
PACKAGE_NAME = "modernbert"  # of the model that takes texts
PACKAGE_DEVICES = ("cpu", "gpu")  # as Triton names them
PACKAGE_PRECISIONS = ("fp32", "int8")  # of graphs; an engine has its own
