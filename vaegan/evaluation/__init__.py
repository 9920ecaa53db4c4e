"""Synthetic images beside real ones: every metric with its interval, its floor and its stamp, as one JSON document.

`vaegan.metrics` holds the formulas; here they meet: `comparison` is one extractor's numbers, `measure` puts the
extractors together, `table` says it in a terminal. `vaegan.evaluate` is the command.
"""

from vaegan.evaluation.measure import evaluate_images
from vaegan.evaluation.table import table

__all__ = ["evaluate_images", "table"]
