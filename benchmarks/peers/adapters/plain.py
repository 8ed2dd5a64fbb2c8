"""Ways without a dataset library: a memory map, a pickled list in RAM, HDF5."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from shapes import Source

from adapters.base import Batch, Index, Rows, gathered


class Memmap(Rows):
    """``.npy`` files through numpy.memmap into reused buffers."""

    kept_after_fork = True

    def connect(self) -> list[np.ndarray]:
        return [np.load(self.folder / f"{name}.npy", mmap_mode="c") for name in self.fields]

    def __getitem__(self, sample: int) -> list[np.ndarray]:
        return [array[sample] for array in self.handle]

    def batch(self, index: Index) -> Batch:
        return gathered(self.handle, index, self.buffers(len(index)), self.is_small)


class PickledList(Rows):
    """A list of dicts, loaded whole into RAM by torch.load; torch's loader collates samples."""

    batched_if_small = False
    kept_after_fork = True

    def write(self, folder: Path, source: Source) -> None:
        import torch

        samples = [{name: np.array(row) for name, row in fields.items()} for fields in source.rows()]
        torch.save(samples, folder / "samples.pt", pickle_protocol=pickle.HIGHEST_PROTOCOL)

    def connect(self) -> list[dict[str, np.ndarray]]:
        import torch

        return torch.load(self.folder / "samples.pt", weights_only=False)

    def __getitem__(self, sample: int) -> dict[str, np.ndarray]:
        return self.handle[sample]


class H5py(Rows):
    """One HDF5 dataset per field, contiguous; row by row, which is faster than ``read_direct`` or a list."""

    def write(self, folder: Path, source: Source) -> None:
        import h5py

        with h5py.File(folder / "samples.h5", "w", libver="latest") as file:
            for name, array in source.arrays().items():
                dataset = file.create_dataset(name, array.shape, array.dtype)
                for start in range(0, len(array), source.batch):
                    dataset[start : start + source.batch] = array[start : start + source.batch]

    def connect(self) -> list[Any]:
        import h5py

        file = h5py.File(self.folder / "samples.h5", "r")
        return [file[name] for name in self.fields]

    def __getitem__(self, sample: int) -> list[np.ndarray]:
        return [dataset[sample] for dataset in self.handle]
