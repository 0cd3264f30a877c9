"""The graph, authored node by node: architecture in, ONNX model in memory out. No file I/O.

Reading order: ``encoder.py`` (the model), ``mlp.py``, ``heads.py``, then the two dialects of
what differs between runtimes, ``portable.py`` and ``fused.py``.
"""
