"""Measurements on a GPU: run.py is what is started, README.md says how."""
