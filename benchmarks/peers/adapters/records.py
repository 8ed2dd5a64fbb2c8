"""Libraries that store one record per sample: MDS, LitData, ArrayRecord with Grain, WebDataset."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from shapes import Source

from adapters.base import Batch, Index, Opened, Rows

CHUNK_NBYTES = 64 * 1024**2  # what MDS and LitData put in a file by default
PREFETCH_NBYTES = 256 * 1024**2


class Mds(Rows):
    """MosaicML streaming: LocalDataset for batches, StreamingDataset with its own loader for epochs."""

    def write(self, folder: Path, source: Source) -> None:
        from streaming import MDSWriter

        columns = {
            name: f"ndarray:{array.dtype}:{','.join(map(str, array.shape[1:]))}"
            for name, array in source.arrays().items()
        }
        with MDSWriter(out=str(folder), columns=columns, size_limit=CHUNK_NBYTES) as writer:
            for row in source.rows():
                writer.write({name: np.array(array) for name, array in row.items()})

    def connect(self) -> Any:
        from streaming import LocalDataset

        return LocalDataset(str(self.folder))

    def __getitem__(self, sample: int) -> Any:
        return self.handle[sample]

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        from streaming import StreamingDataLoader, StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        dataset = StreamingDataset(local=str(self.folder), shuffle=shuffle, batch_size=batch_size)
        return StreamingDataLoader(dataset, batch_size=batch_size, num_workers=workers)


class LitData(Rows):
    """LitData: single samples decoded alone, and its StreamingDataLoader, which decodes many together.

    Decoding all of a chunk is the fastest for its loader, one sample for random reads.
    """

    streams = True

    def write(self, folder: Path, source: Source) -> None:
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(folder), chunk_bytes=CHUNK_NBYTES)
        for sample, row in enumerate(source.rows()):
            writer[sample] = {name: np.array(array) for name, array in row.items()}
        writer.done()
        writer.merge()

    def connect(self) -> Any:
        from litdata import StreamingDataset

        return StreamingDataset(str(self.folder), batch_decode=0)

    def __getitem__(self, sample: int) -> Any:
        return self.handle[sample]

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        from litdata import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(str(self.folder), shuffle=shuffle, batch_decode="all")
        return StreamingDataLoader(dataset, batch_size=batch_size, num_workers=workers)


class ArrayRecordGrain(Opened):
    """ArrayRecord, one record a group and uncompressed; epochs by Grain's pipeline."""

    streams = True

    def write(self, folder: Path, source: Source) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(folder / "samples.array_record"), "group_size:1,uncompressed")
        for row in source.rows():
            writer.write(b"".join(array.tobytes() for array in row.values()))
        writer.close()

    def connect(self) -> Any:
        import grain

        return grain.sources.ArrayRecordDataSource(str(self.folder / "samples.array_record"))

    def batch(self, index: Index) -> Batch:
        out = self.buffers(len(index))
        for row, sample in enumerate(index.tolist()):
            for target, value in zip(out, _fields(self.fields, self.handle[sample]).values(), strict=True):
                target[row] = value
        return out

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        import grain

        samples = grain.MapDataset.source(self.handle)
        samples = (samples.shuffle(seed=0) if shuffle else samples).map(partial(_fields, self.fields))
        batches = samples.batch(batch_size)
        if not workers:  # as Grain advises for data in memory
            return batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=1))
        nbytes = batch_size * sum(int(np.prod(form)) * dtype.itemsize for form, dtype in self.fields.values())
        ahead = min(16, max(1, PREFETCH_NBYTES // nbytes))  # its default of 500 batches may not fit in RAM
        read = batches.to_iter_dataset(grain.ReadOptions(num_threads=16, prefetch_buffer_size=ahead))
        return read.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))


def _fields(fields: dict[str, tuple[tuple[int, ...], np.dtype]], record: bytes) -> dict[str, np.ndarray]:
    """The fields that one record holds, one after the other."""
    found, offset = {}, 0
    for name, (form, dtype) in fields.items():
        count = int(np.prod(form))
        found[name] = np.frombuffer(record, dtype, count, offset).reshape(form)
        offset += found[name].nbytes
    return found


class WebDatasetTars(Opened):
    """WebDataset: eight tar files of ``.npy`` members, read in order."""

    batch = None
    random = False
    streams = True

    def write(self, folder: Path, source: Source) -> None:
        import webdataset as wds

        each = -(-len(source.checksums()) // 8)
        with wds.ShardWriter(str(folder / "%03d.tar"), maxcount=each, maxsize=2**40, verbose=0) as writer:
            for sample, row in enumerate(source.rows()):
                members = {f"{name}.npy": np.array(array) for name, array in row.items()}
                writer.write({"__key__": f"{sample:09d}"} | members)

    def connect(self) -> list[str]:
        return sorted(str(path) for path in self.folder.glob("*.tar"))

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        import webdataset as wds

        names = [f"{name}.npy" for name in self.fields]
        dataset = (
            wds.WebDataset(self.handle, shardshuffle=False).decode().to_tuple(*names).batched(batch_size)
        )
        return wds.WebLoader(dataset, batch_size=None, num_workers=workers)
