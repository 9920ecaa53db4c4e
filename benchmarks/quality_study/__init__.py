"""The study of generator recipes behind `benchmarks/quality.py`: a file for each concept."""
