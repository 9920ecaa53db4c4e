"""What the benchmarks share. In a folder of its own, since `make bench` runs every file beside it."""
