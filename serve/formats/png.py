"""One image as a PNG file that says what it is."""

import numpy as np

from vaegan.images import encode_png


def png(pixels: np.ndarray, address: str) -> bytes:
    """One image (H, W, C) as a PNG file whose text chunks say what it is and where it comes from."""
    text = {
        "Title": f"Synthetic image {address}",
        "Description": "synthetic: made by a generative model, not fit for diagnosis",
        "Software": "AugRay",
        "AugRay-Synthetic": "true",
        "AugRay-Address": address,
    }
    return encode_png(pixels, text)
