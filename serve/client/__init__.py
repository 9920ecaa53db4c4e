"""A client of the service: images as arrays, with the retries that Ray Serve leaves to whoever asks.

Every request names its images by address, so sending it again is safe: the second answer is the first. `Client` and
`AsyncClient` have the same methods; `serve.client.dataset` feeds PyTorch and `serve.client.raydata` Ray Data from them.
"""

from serve.client.aio import AsyncClient
from serve.client.answers import Encoding
from serve.client.retry import Retry, ServiceError
from serve.client.sync import Client
