"""Do synthetic images make a classifier better? Classifiers, the ablation, its statistics and the report."""
