"""A bundle without mbexport: python examples/plain_onnxruntime.py BUNDLE TEXT."""

import json, sys  # noqa: E401, I001
import numpy as np, onnxruntime, tokenizers  # noqa: E401

bundle, text = sys.argv[1:]
ids = np.array([tokenizers.Tokenizer.from_file(f"{bundle}/tokenizer.json").encode(text).ids])
session = onnxruntime.InferenceSession(f"{bundle}/onnx/model.onnx")
logits = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
print(json.load(open(f"{bundle}/config.json"))["id2label"][str(logits[0].argmax())])
