"""Where a graph goes wrong, and why: each stage is given the reference's input, and causes are tried out.

Begin with :mod:`mbexport.parity.diagnosis.search`.
"""
