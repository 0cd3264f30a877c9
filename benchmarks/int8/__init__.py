"""INT8: what it costs in quality, what it brings in speed, and what was chosen among."""
