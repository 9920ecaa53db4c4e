"""Synthetic images beside real ones: every metric with its interval, its floor and its stamp, as one JSON document.

`vaegan.metrics` holds the formulas; here they meet. `comparison` is one extractor's numbers, `bias` and `diversity`
what stands beside them, `audit` the privacy gate, `synthesis` draws a model's images, `measure` puts all together.
People see it as a `table` in a terminal and as a `page` of numbers and pictures (`gallery`); `paper` is the paper's
Table 1 for a run. `vaegan.evaluate` is the command.
"""

from vaegan.evaluation.measure import evaluate_images
from vaegan.evaluation.table import table

__all__ = ["evaluate_images", "table"]
