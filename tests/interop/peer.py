"""The other side of the interop tests: run by the peers' own Python, prints JSON.

python tests/interop/peer.py optimum BUNDLE CLASS < texts.json
python tests/interop/peer.py pipeline BUNDLE < texts.json
python tests/interop/peer.py openvino BUNDLE < inputs.json
python tests/interop/peer.py save-sentence-transformer ENCODER DIRECTORY
python tests/interop/peer.py sentence-transformer BUNDLE < texts.json
"""

from __future__ import annotations

import json
import sys


def optimum(bundle: str, class_name: str) -> object:
    import optimum.onnxruntime
    from transformers import AutoTokenizer

    model = getattr(optimum.onnxruntime, class_name).from_pretrained(bundle)
    tokenizer = AutoTokenizer.from_pretrained(bundle)
    outputs = [model(**tokenizer(text, return_tensors="pt"))[0][0] for text in json.load(sys.stdin)]
    return [output.tolist() for output in outputs]


def pipeline(bundle: str) -> object:
    import transformers
    from optimum.onnxruntime import ORTModelForSequenceClassification

    model = ORTModelForSequenceClassification.from_pretrained(bundle)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundle)
    return transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)(json.load(sys.stdin))


def openvino(bundle: str) -> object:
    import numpy as np
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    model = ov.Core().compile_model(f"{bundle}/onnx/model.onnx", "CPU", settings)
    inputs = {name: np.array(value, np.int64) for name, value in json.load(sys.stdin).items()}
    return next(iter(model(inputs).values())).tolist()


def save_sentence_transformer(encoder: str, directory: str) -> object:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    torch.manual_seed(5)
    modules = [Transformer(encoder), Pooling(64, pooling_mode="mean"), Dense(64, 24), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(directory)
    return directory


def sentence_transformer(bundle: str) -> object:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(bundle, backend="onnx", device="cpu", local_files_only=True)
    return model.encode(json.load(sys.stdin)).tolist()


if __name__ == "__main__":
    command = globals()[sys.argv[1].replace("-", "_")]
    print(json.dumps(command(*sys.argv[2:])))
