"""Graphs as a comparison runs them: on the CPU, FP16 really rounded, rows of several texts laid out and taken apart."""
