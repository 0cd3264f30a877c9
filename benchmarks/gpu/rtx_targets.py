"""Which engines of TensorRT-RTX load on this GPU: built for it, for others, for whatever the builder takes by default.

    python -m benchmarks.gpu.rtx_targets BUNDLE TARGET     # prints JSON; TARGET: 8.9, current, or default

The bundle needs its FP16 graph. Each target gets a process of its own: a builder or a loader may end it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from mbexport.engines.gpus import GPUS, RTX_TARGETS
from mbexport.engines.job import RTX_SWITCH
from mbexport.processes import one_line

os.environ[RTX_SWITCH] = "1"  # read once, when Polygraphy is imported
NAMES = {".".join(map(str, gpu.compute_capability)): name for name, gpu in reversed(GPUS.items())}
# By compute capability, then the GPU at hand, then what the builder does where nothing is said.
TARGETS = (*(".".join(map(str, target)) for target in RTX_TARGETS), "current", "default")
SHAPES = ((1, 1), (1, 64), (2, 128))  # smallest, fastest, largest; the second is run


def attempt(bundle: Path, target: str) -> dict[str, Any]:
    """Build an engine, load it and run it once.

    Returns:
        ``built``: seconds; ``loads``: whether it does; ``error``: its logits' largest difference from ONNX Runtime's on
        the CPU; ``spread``: of those; ``reason``: why it went no further.
    """
    found: dict[str, Any] = {"target": target, "built": None, "loads": False, "error": None, "reason": None}
    try:
        before = time.perf_counter()
        content = _build(bundle, target)
        found["built"] = time.perf_counter() - before
        found |= _run(bundle, content)
    except Exception as cause:  # of Polygraphy, TensorRT and CUDA, which have no root in common
        found["reason"] = one_line(cause, 300)
    return found


def _build(bundle: Path, target: str) -> bytes:
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.backend.trt import CreateNetwork, EngineBytesFromNetwork, Profile
    from polygraphy.backend.trt.util import check_onnx_parser_errors, get_trt_logger
    from tensorrt_rtx import OnnxParser

    from mbexport import manifest as manifests
    from mbexport.checkpoint.load import read_bundle_spec
    from mbexport.engines.prepare import prepare

    manifest = manifests.read(bundle)
    graph = next(graph for graph in manifest.graphs if graph.precision == "fp16" and not graph.packed)
    source = prepare(bundle / graph.file, read_bundle_spec(bundle, manifest).layer_is_global)
    builder, network = CreateNetwork()()
    parser = OnnxParser(network, get_trt_logger())
    check_onnx_parser_errors(parser, parser.parse(source.model, str(source.path)))
    profile = Profile()
    for number in range(network.num_inputs):
        profile.add(network.get_input(number).name, *SHAPES)
    named = None if target in ("current", "default") else [tuple(map(int, target.split(".")))]
    config = CreateConfigRTX(compute_capabilities=named, use_gpu=target == "current", profiles=[profile])
    return bytes(EngineBytesFromNetwork((builder, network, parser), config=config)())


def _run(bundle: Path, content: bytes) -> dict[str, Any]:
    import numpy as np
    import tensorrt_rtx

    from mbexport.runtime import load
    from mbexport.runtime.backends.session import Session
    from mbexport.runtime.cuda import Cuda
    from mbexport.runtime.shapes import choose_profile, resolved

    session = Session(tensorrt_rtx, Cuda(), content, "the engine")
    ids = np.random.default_rng(0).integers(100, 1000, SHAPES[1])
    fit = choose_profile(session.profiles, *SHAPES[1])
    if fit is None:
        raise ValueError(f"the engine has the profiles {session.profiles}")
    shapes = {name: resolved(shape, fit.batch, fit.length) for name, shape in session.output_shapes.items()}
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    logits = session.run(fit, given, shapes, {"logits": None})["logits"].copy()
    session.close()
    expected = load(bundle, device="cpu", precision="fp32").outputs_of_tokens([ids[0]])[0]["logits"]
    return {"loads": True, "error": float(np.abs(logits[0] - expected).max()), "spread": float(np.ptp(expected))}


if __name__ == "__main__":
    print(json.dumps(attempt(Path(sys.argv[1]), sys.argv[2])))
