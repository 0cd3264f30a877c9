"""Proof that a bundle's graphs compute what the PyTorch model computes."""
