"""What a user is told of files that others wrote, and of those that are no container."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner, Result

import parbake
from parbake.cli import main


def run(*words: object) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    path = tmp_path / "measured.h5"
    with h5py.File(path, "w") as file:
        for name, samples in (("train", 50), ("test", 20)):
            values = np.arange(samples * 8, dtype="f4").reshape(samples, 8)
            file.create_dataset(f"{name}/x", data=values, chunks=(10, 8), compression="gzip")
            file[f"{name}/y"] = np.arange(samples)
    return path


NO_CONTAINER = {
    "a.txt": (b"hello", "neither Zarr nor HDF5, whatever its name"),
    "a.png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "neither Zarr nor HDF5, whatever its name"),
    "a.nc": (b"CDF\x02" + bytes(99), "NetCDF-3; 'nccopy -k nc4'"),
    "a.npy": (b"\x93NUMPY\x01\x00" + bytes(99), "a NumPy array"),
    "a.h5.gz": (b"\x1f\x8b" + bytes(99), "compressed by gzip"),
    "a.pkl": (b"\x80\x04N.", "'parbake convert' makes a store of it"),
    "a.h5": (b"", "an empty file"),
    "a.zip": (b"hello", "not a zip archive, or one that was cut"),
}


@pytest.mark.parametrize("name", NO_CONTAINER)
@pytest.mark.parametrize("verb", ["inspect", "verify", "bench"])
def test_what_is_no_container_is_told_by_what_it_is(verb: str, name: str, tmp_path: Path) -> None:
    content, told = NO_CONTAINER[name]
    (tmp_path / name).write_bytes(content)
    result = run(verb, tmp_path / name)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert f"{name}: " in result.stderr
    assert told in result.stderr


def test_folders_and_archives_that_hold_no_zarr_say_what_they_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    assert "an .npz of NumPy" in run("inspect", tmp_path / "a.npz").stderr
    images = tmp_path / "images"
    images.mkdir()
    assert "an empty folder" in run("inspect", images).stderr
    for i in range(5):
        (images / f"{i}.png").touch()
    assert "there are 0.png, 1.png, 2.png, 2 more" in run("inspect", images).stderr
    zarr.save_array(str(images / "inner.zarr"), np.zeros(3))
    assert f"inner.zarr in it is one: open {images / 'inner.zarr'}\n" in run("inspect", images).stderr
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s")
        assert run("inspect", "s").stderr == "parbake: error: s: not a plain file\n".replace(
            ": s:", f": {tmp_path / 's'}:"
        )


def test_verify_tells_checked_from_only_read(measured: Path) -> None:
    result = run("verify", measured)
    assert result.exit_code == 0
    assert result.stdout.endswith(" checked; without checksums: train/y\n")
    assert ": whole, " in result.stdout
    found = json.loads(run("verify", measured, "--json").stdout)
    assert (found["whole"], found["unchecked"], found["damaged"]) == (True, ["train/y"], [])
    assert found["checked_nbytes"] > 0
    with h5py.File(measured, "w") as file:
        file["x"] = np.arange(9)
    assert run("verify", measured).stdout == f"{measured}: all of it can be read; without checksums: x\n"


def test_verify_of_a_damaged_file_asks_for_another_and_not_for_a_recipe(measured: Path) -> None:
    with h5py.File(measured) as file:
        chunk = file["train/x"].id.get_chunk_info(1)
    content = bytearray(measured.read_bytes())
    content[chunk.byte_offset + 20] ^= 1
    measured.write_bytes(content)
    for more in ((), ("--repair",)):
        result = run("verify", measured, *more)
        assert result.exit_code == 1
        assert result.stdout.startswith("measured.h5: field 'train/x', samples 10-19: chunk 1 ")
        assert result.stdout.count("samples") == 2
        assert "get the file again" in result.stderr
        assert "RECIPE" not in result.stderr


@pytest.mark.filterwarnings("ignore:.*left out")
def test_the_smaller_half_of_a_file_is_reached_by_an_array_of_it(measured: Path) -> None:
    result = run("inspect", measured)
    assert "sample 50" in result.stdout
    assert "sample_dim='test/x' picks others" in result.stderr
    for verb in ("inspect", "verify"):
        result = run(verb, measured, "--sample-dim", "test/x")
        assert result.exit_code == 0
        assert "test/y" in result.stdout
        assert "train" not in result.stdout
    result = run("bench", measured, "--sample-dim", "test/x", "--seconds", "0.01", "--workers", "0")
    best = result.stdout.splitlines()[-1].removeprefix("loader = ")
    assert len(eval(best, {"parbake": parbake, "torch": torch}).dataset) == 20
    result = run("inspect", measured, "--sample-dim", "nothing")
    assert result.exit_code == 2
    assert "it holds " in result.stderr
    assert "test/x (20, 8) float32" in result.stderr
