"""All readers that are compared: where each adapter is, in which environment it runs, what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["bound", "ours", "plain", "library"]


@dataclass(frozen=True)
class Reader:
    """``adapter``: module:class; ``folder``: what it reads, written by the first reader that names it."""

    name: str
    kind: Kind
    environment: Literal["driver", "shared", "mds"]
    adapter: str
    folder: str
    packages: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    untouched: bool = False  # also timed without looking at the batches


COPY_LIMIT = Reader("copy limit", "bound", "driver", "bounds:CopyLimit", "source", ("numpy",), {}, True)


def _ours(codec: str) -> tuple[Reader, ...]:
    folder = f"parbake-{codec}"

    def reader(how: str, adapter: str, untouched: bool = False, **options: Any) -> Reader:
        name = f"parbake {codec}, {how}"
        return Reader(name, "ours", "driver", f"ours:{adapter}", folder, ("parbake",), options, untouched)

    return (
        reader("read(out=)", "Read", True, codec=codec),
        reader("read(out=, threads=2)", "Read", codec=codec, threads=2),
        reader("DataLoader", "Plain"),
        reader("DataLoader, threads=2", "Plain", threads=2),
        reader("ds.loader", "Loader"),
        reader("BatchLoader", "Threads"),
    )


def _decoder(name: str, threads: int) -> Reader:
    options = {"threads": threads}
    return Reader(name, "bound", "driver", "bounds:Decoder", "parbake-lz4", ("numcodecs",), options, True)


def _zarr(codec: str) -> tuple[Reader, ...]:
    folder = f"parbake-{codec}"
    zarrs = {"pipeline": "zarrs.ZarrsCodecPipeline"}
    return (
        Reader(f"zarr-python, {codec}", "library", "driver", "zarr_files:ZarrPython", folder, ("zarr",)),
        Reader(f"zarrs, {codec}", "library", "shared", "zarr_files:ZarrPython", folder, ("zarrs",), zarrs),
        Reader(
            f"tensorstore, {codec}", "library", "driver", "zarr_files:TensorStore", folder, ("tensorstore",)
        ),
    )


READERS = (
    COPY_LIMIT,
    Reader(
        "fancy indexing of a memory map", "bound", "driver", "bounds:Fancy", "source", ("numpy",), {}, True
    ),
    *_ours("raw"),
    *_ours("lz4"),
    _decoder("lz4 decoder alone", 1),
    _decoder("lz4 decoder alone, 2 threads", 2),
    Reader("np.memmap", "plain", "driver", "plain:Memmap", "source", ("numpy",), {}, True),
    Reader("torch.load, list in RAM", "plain", "driver", "plain:PickledList", "list", ("torch",)),
    Reader("h5py", "library", "driver", "plain:H5py", "hdf5", ("h5py",)),
    *_zarr("raw"),
    *_zarr("lz4"),
    Reader("tensordict", "library", "shared", "columns:TensorDicts", "tensordict", ("tensordict",)),
    Reader(
        "datasets, numpy",
        "library",
        "shared",
        "columns:HuggingFace",
        "datasets",
        ("datasets", "pyarrow"),
        {"form": "numpy"},
    ),
    Reader(
        "datasets, torch",
        "library",
        "shared",
        "columns:HuggingFace",
        "datasets",
        ("datasets", "torch"),
        {"form": "torch"},
    ),
    Reader("MDS", "library", "mds", "records:Mds", "mds", ("mosaicml-streaming", "torch", "numpy")),
    Reader("LitData", "library", "shared", "records:LitData", "litdata", ("litdata", "torch")),
    Reader(
        "ArrayRecord, Grain",
        "library",
        "shared",
        "records:ArrayRecordGrain",
        "arrayrecord",
        ("array-record", "grain"),
    ),
    Reader("Lance", "library", "shared", "columns:Lance", "lance", ("pylance",)),
    Reader("WebDataset", "library", "shared", "records:WebDatasetTars", "webdataset", ("webdataset",)),
)


def writer_of(folder: str) -> Reader:
    """The reader whose adapter writes ``folder``."""
    return next(reader for reader in READERS if reader.folder == folder)
