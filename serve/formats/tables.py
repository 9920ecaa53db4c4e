"""Tables in the schema of a dataset's shards: a Parquet file to add to a dataset, an Arrow stream to read at once."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.formats.answer import Answer
from serve.formats.sink import Sink
from vaegan import shards


class _TableWriter:
    """Rows gathered to groups of as many as a dataset's files have."""

    writer: pa.RecordBatchStreamWriter | pq.ParquetWriter

    def __init__(self, answer: Answer) -> None:
        self.answer, self.sink = answer, Sink()
        self.waiting: list[pa.Table] = []
        self.rows = 0

    def prepare(self, offset: int, pixels: np.ndarray) -> pa.Table:
        return shards.to_table(self.answer.rows(offset, pixels), self.answer.schema)

    def add(self, prepared: pa.Table) -> bytes:
        self.waiting.append(prepared)
        self.rows += len(prepared)
        while self.rows >= shards.GROUP_ROWS:
            self._write(shards.GROUP_ROWS)
        return self.sink.drain()

    def finish(self) -> bytes:
        if self.rows:
            self._write(self.rows)
        self.close()
        return self.sink.drain()

    def close(self) -> None:
        self.writer.close()

    def _write(self, rows: int) -> None:
        table = pa.concat_tables(self.waiting)
        self.writer.write_table(table.slice(0, rows).combine_chunks())
        self.waiting, self.rows = [table.slice(rows)], len(table) - rows


class ParquetWriter(_TableWriter):
    """A Parquet file; read it with `vaegan.shards`."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.writer = pq.ParquetWriter(pa.PythonFile(self.sink, mode="w"), answer.schema, compression="zstd")


class ArrowWriter(_TableWriter):
    """An Arrow IPC stream of record batches, uncompressed, which any Arrow library reads while it arrives."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.writer = pa.ipc.new_stream(pa.PythonFile(self.sink, mode="w"), answer.schema)
