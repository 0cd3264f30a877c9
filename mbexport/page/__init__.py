"""Pieces of a page: HTML that escapes by itself, a document with its style inside, tables, charts.

Standard library only. A page needs no other file, no script and no network.
"""
