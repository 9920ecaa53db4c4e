"""How images become a dataset: decoded in parts, searched for traps, split, written; `pipeline` is the whole way."""
