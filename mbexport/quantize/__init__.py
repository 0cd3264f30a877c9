"""INT8 graphs of a bundle: calibrated on real texts, behind a quality gate."""
