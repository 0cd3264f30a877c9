"""Latency, throughput, memory and start against peers, each in a process of its own.

Importing it is light: a contender's packages are imported in its own process only.
"""
