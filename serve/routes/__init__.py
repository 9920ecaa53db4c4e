"""The HTTP routes, a file for each group of paths; `serve.api` joins them."""
