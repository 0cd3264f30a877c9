"""Make tensorrt-stubs 10.13 parse: five signatures of it are no Python. Run once after it is installed."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

PATH = Path(sysconfig.get_paths()["purelib"]) / "tensorrt_bindings" / "tensorrt.pyi"

if __name__ == "__main__":
    text = PATH.read_text("utf-8")
    text = re.sub(r"\bin: list\[", "in_: list[", text)
    text = text.replace("power: Weights = None, channel_axis: int)", "power: Weights = None, channel_axis: int = ...)")
    compile(text, str(PATH), "exec")
    PATH.write_text(text, "utf-8")
