"""The HTTP service that hands out synthetic images, and its client. Ray's own `serve` is `ray_serve` in here."""
