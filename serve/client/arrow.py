"""An Arrow IPC stream, decoded from bytes as they come: what pyarrow's reader does, without its blocking `read`."""

import struct
from collections.abc import Iterator

import pyarrow as pa

_PREFIX = struct.Struct("<II")  # a continuation marker, then the size of the metadata; 0 ends the stream
_CONTINUES = 0xFFFFFFFF
_BODY_SLOT = 4 + 2 * 3  # where a Message's vtable keeps `bodyLength`, its fourth field (format/Message.fbs)
LARGEST_METADATA = 1 << 24
LARGEST_BODY = 1 << 31
"""Bytes; a record batch of 256 colour images of 1024 px is 0.8 GB. More is a stream of something else."""


class StreamDecoder:
    """Give it bytes in pieces of any size, get record batches as soon as each is complete.

    Holds no more than the one message that is under way. A stream is complete when `ended`.
    """

    def __init__(self) -> None:
        self.schema: pa.Schema | None = None
        self.ended = False
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[pa.RecordBatch]:
        """The record batches that `data` completes.

        Raises:
            pa.ArrowInvalid: this isn't a stream of Arrow record batches.
        """
        self._buffer += data
        while not self.ended and (size := self._message_size()) is not None and size <= len(self._buffer):
            message = pa.py_buffer(bytes(self._buffer[:size]))
            del self._buffer[:size]
            if size == _PREFIX.size:
                self.ended = True
            elif (batch := self._decoded(message)) is not None:
                yield batch

    def _decoded(self, message: pa.Buffer) -> pa.RecordBatch | None:
        """A record batch; None for the schema, which comes first and is kept."""
        try:
            if self.schema is None:
                self.schema = pa.ipc.read_schema(message)
                return None
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(message), self.schema)
            batch.validate(full=True)  # it came from elsewhere: offsets that point outside must not be followed
        except (pa.ArrowException, OSError, ValueError) as error:
            raise pa.ArrowInvalid(str(error)) from None
        return batch

    def _message_size(self) -> int | None:
        """Bytes of the message at the buffer's start, or None while too little of it is there to tell."""
        if len(self._buffer) < _PREFIX.size:
            return None
        marker, metadata = _PREFIX.unpack_from(self._buffer)
        if marker != _CONTINUES or metadata > LARGEST_METADATA:
            raise pa.ArrowInvalid("not an Arrow IPC stream")
        end = _PREFIX.size + metadata
        if metadata == 0:
            return end
        return None if len(self._buffer) < end else end + self._body_length(_PREFIX.size)

    def _body_length(self, at: int) -> int:
        """`bodyLength` of the Message flatbuffer at `at`; pyarrow tells it only of messages that are complete."""
        try:
            table = at + struct.unpack_from("<I", self._buffer, at)[0]
            vtable = table - struct.unpack_from("<i", self._buffer, table)[0]
            if struct.unpack_from("<H", self._buffer, vtable)[0] <= _BODY_SLOT:
                return 0
            offset = struct.unpack_from("<H", self._buffer, vtable + _BODY_SLOT)[0]
            length = struct.unpack_from("<q", self._buffer, table + offset)[0] if offset else 0
        except struct.error:
            raise pa.ArrowInvalid("an Arrow message with damaged metadata") from None
        if not 0 <= length <= LARGEST_BODY:
            raise pa.ArrowInvalid(f"an Arrow message of {length} bytes")
        return length
