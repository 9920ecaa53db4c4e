"""A file that is sent while it is written."""

import io


class Sink(io.RawIOBase):
    """Keeps what was written since the last `drain`.

    Args:
        seekable: whether that part can still be changed, by seeking back to it; what was drained never can.
    """

    def __init__(self, *, seekable: bool = False) -> None:
        super().__init__()
        self._can_seek = seekable
        self._sent = 0
        self._pending = io.BytesIO()

    def drain(self) -> bytes:
        """What was written since the last call."""
        data = self._pending.getvalue()
        self._sent += len(data)
        self._pending = io.BytesIO()
        return data

    def write(self, data: object) -> int:
        return self._pending.write(data)  # type: ignore[arg-type]  # whatever has a buffer

    def tell(self) -> int:
        return self._sent + self._pending.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not self._can_seek:
            raise io.UnsupportedOperation("what was written may be on its way already")
        if whence == io.SEEK_END:
            return self._sent + self._pending.seek(offset, io.SEEK_END)
        position = offset + (self.tell() if whence == io.SEEK_CUR else 0)
        if position < self._sent:
            raise OSError(f"byte {position} was sent already, expected {self._sent} or more")
        return self._sent + self._pending.seek(position - self._sent)

    def seekable(self) -> bool:
        return self._can_seek

    def writable(self) -> bool:
        return True
