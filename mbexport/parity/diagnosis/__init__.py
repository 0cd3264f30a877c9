"""Where a graph goes wrong, and why: each stage is given the reference's input, and causes are tried out.

Begin with :mod:`mbexport.parity.diagnosis.search`.
"""

from mbexport.parity.diagnosis.causes import CAUSES
from mbexport.parity.diagnosis.graph_taps import GraphTaps
from mbexport.parity.diagnosis.search import diagnose
from mbexport.parity.diagnosis.taps import Taps, TapSource

__all__ = ["CAUSES", "GraphTaps", "TapSource", "Taps", "diagnose"]
