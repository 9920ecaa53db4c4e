"""What is in a dataset and whether its splits can be trusted: counts, grey levels, copies, pictures, a page."""
