"""A streamed order under way: what to ask next, and whether what came is what was asked. Knows no network."""

from collections.abc import Iterator
from dataclasses import replace

import httpx
import numpy as np
import pyarrow as pa

from serve.client.answers import about_rows, as_rows
from serve.client.arrow import StreamDecoder
from serve.client.requests import ARROW, Order, Request
from serve.client.retry import UNANSWERED, Attempts, Retry, ServiceError, refusal, strange
from vaegan.shards import labels_of


class Transfer:
    """Asks for an order in segments and resumes, after a failure, at the first row that has not come.

    Whoever has a connection does, until `request` returns None: send it, `begin` with the answer, `feed` what arrives,
    `end`; and gives a ServiceError on that way to `failed`, which raises it or says how long to wait.

    Args:
        order: what is asked for in all.
        retry: when to give up.
        per_request: most rows of one segment.

    Attributes:
        order: with the version that the first answer named, so that one published meanwhile doesn't mix in.
    """

    def __init__(self, order: Order, retry: Retry, per_request: int) -> None:
        if per_request < 1:
            raise ValueError(f"per_request is {per_request}, expected 1 or more; leave it out for the default")
        self.order, self.attempts = order, Attempts(retry)
        self._per_request = per_request
        self._done = 0
        self._end = 0
        self._schema: pa.Schema | None = None

    def request(self) -> Request | None:
        """What to ask next; None when all rows are there."""
        if self._done == self.order.count:
            return None
        if self._done == self._end:  # else the segment broke
            self._end = min(self._done + self._per_request, self.order.count)
        return self._rows(self._end - self._done).request()

    def begin(self, response: httpx.Response) -> None:
        """An answer begins; its body has been read if its status is no success.

        Raises:
            ServiceError: it is a refusal, of another version than before, or no stream of rows.
        """
        if not response.is_success:
            raise refusal(response)
        self._response, self._decoder = response, StreamDecoder()
        if response.headers.get("Content-Type", "").partition(";")[0].strip() != ARROW:
            raise strange(response, f"{response.headers.get('Content-Type')} where {ARROW} was asked for")
        version = response.headers.get("X-AugRay-Version")
        if version is None or self.order.version not in (None, version):
            raise strange(response, f"images of version {version} where {self.order.version or 'one'} was asked for")
        self.order = replace(self.order, version=version)

    def feed(self, data: bytes) -> Iterator[pa.Table]:
        """Rows that `data` completes, as tables of `vaegan.shards.schema`, in order and each once.

        Raises:
            ServiceError: they aren't the rows that were asked for, or the deadline is over.
        """
        try:
            for batch in self._decoder.feed(data):
                self._check(as_rows(batch))
                self.attempts.progress()
                self._done += batch.num_rows
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])
        except pa.ArrowInvalid as error:
            raise strange(self._response, f"no rows of images ({error})") from None
        self.attempts.left_s()

    def end(self) -> None:
        """The answer ended.

        Raises:
            ServiceError: rows are missing.
        """
        if self._done < self._end:
            raise ServiceError(
                UNANSWERED,
                f"the answer ended {self._end - self._done} images early; look into the service's log for why",
                request_id=self._response.headers.get("X-Request-ID"),
            )

    def failed(self, failure: ServiceError) -> float:
        """Seconds to wait before the next request.

        Raises:
            ServiceError: `failure`, where another request would not help.
        """
        if self._done == self._end and failure.status == UNANSWERED:
            return 0.0  # it broke when all was said
        return self.attempts.wait_s(failure)

    def _rows(self, count: int) -> Order:
        return replace(self.order, start=self.order.start + self._done, count=count)

    def _check(self, batch: pa.RecordBatch) -> None:
        """A service, or a cache between, that answers another question must not go unnoticed."""
        self._schema = self._schema or batch.schema
        if not batch.schema.equals(self._schema, check_metadata=True):
            raise strange(self._response, "rows of another schema than those before")
        if not batch.num_rows:
            return
        count, left = batch.num_rows, self._end - self._done
        if count > left:
            raise strange(self._response, f"{count - left} images more than were asked for")
        known = about_rows(batch.schema)["classes"]
        assert self.order.version is not None
        expected = self._rows(count).addresses(known, self.order.version)
        found = batch.column("image_id").to_pylist()
        if found != expected:
            wrong = next(pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1])
            raise strange(self._response, f"the image {wrong[0]} where {wrong[1]} was asked for")
        labels = labels_of(pa.Table.from_batches([batch]))
        first = self.order.start + self._done
        if (
            batch.column("seed").to_pylist() != [self.order.seed] * count
            or batch.column("index").to_pylist() != list(range(first, first + count))
            or batch.column("model").to_pylist() != [f"{self.order.model}/{self.order.version}"] * count
            or not np.array_equal(labels, np.tile([name in self.order.classes for name in known], (count, 1)))
        ):
            raise strange(self._response, f"columns that contradict the address {expected[0]}")
