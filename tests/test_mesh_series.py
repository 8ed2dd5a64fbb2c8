"""A mesh series is the same wherever its numbers come from, reads what is asked for, and notices change."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st
from mesh_results import Result, plane, space, write_hdf5, write_npz, write_npz_compressed

from parbake.errors import MeshError
from parbake.producers.meshes import data as mesh_data
from parbake.producers.meshes import npz as mesh_npz
from parbake.producers.meshes import series as mesh_series
from parbake.producers.meshes.series import MeshSeries, _runs
from parbake.store import files


def series_of(result: Result, **changes: Any) -> MeshSeries:
    given = {"points": result.points, "times": result.times, "fields": result.fields, "cells": result.cells}
    return MeshSeries.from_arrays(**{**given, **changes})


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files count as old enough to be remembered."""
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files.time, "time", lambda: 4e9)


def forbidden(*_: Any) -> Any:
    raise AssertionError("a file was read")


def test_a_file_that_is_written_while_it_is_read_gives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, path = plane(), tmp_path / "a.npz"
    series = MeshSeries.open(write_npz(path, result))
    louder = Result(result.points, result.cells, result.times, {n: 7 * v for n, v in result.fields.items()})
    read = mesh_npz.Stored.read

    def overtaken(self: mesh_npz.Stored, start: int, stop: int) -> Any:
        write_npz(path, louder)
        return read(self, start, stop)

    monkeypatch.setattr(mesh_npz.Stored, "read", overtaken)
    with pytest.raises(MeshError, match="has changed since it was opened"):
        series.read([0])


def test_points_that_are_written_to_later_are_not_those_of_the_series() -> None:
    result = plane()
    points = result.points.copy()
    series = series_of(result, points=points)
    before = series.mesh_sha256()
    points *= 2
    assert series.mesh_sha256() == before
    np.testing.assert_array_equal(series.mesh.points, result.points)


def test_a_relative_path_holds_when_the_working_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(tmp_path / "a.npz", plane())
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    series = MeshSeries.open("a.npz")
    monkeypatch.chdir(tmp_path / "below")
    assert series.read([0]).shape == (1, 6, 4)


# ---- what a series gives


def test_a_series_gives_its_arrays() -> None:
    result = plane()
    series = series_of(result, units={"p": "Pa", "U": "m/s"})
    assert series.channels == ("p", "U_x", "U_y", "U_z")
    assert series.units == {"p": "Pa", "U_x": "m/s", "U_y": "m/s", "U_z": "m/s"}
    np.testing.assert_array_equal(series.times, result.times)
    np.testing.assert_array_equal(series.mesh.points, result.points)
    assert series.nodes == 6
    np.testing.assert_array_equal(series.read([1], ["p"])[0, :, 0], result.fields["p"][1])
    np.testing.assert_array_equal(series.read(slice(None), ["U_z", "U_x"]), result.fields["U"][..., [2, 0]])


@pytest.mark.parametrize(
    ("components", "channels"),
    [(1, ("a",)), (2, ("a_x", "a_y")), (3, ("a_x", "a_y", "a_z")), (4, ("a_0", "a_1", "a_2", "a_3"))],
)
def test_channels_of_a_field(components: int, channels: tuple[str, ...]) -> None:
    series = series_of(plane(), fields={"a": np.zeros((3, 6, components))})
    assert series.channels == channels


def test_values_keep_their_dtype_and_mixed_ones_take_the_widest() -> None:
    series = series_of(plane())
    assert series.read([0], ["p"]).dtype == np.float32
    assert series.read([0]).dtype == np.float64


@pytest.mark.parametrize("write", [write_npz, write_npz_compressed, write_hdf5])
@pytest.mark.parametrize(
    "steps", [[2], [0, 1, 2], [2, 0], [-1, 1, 1], slice(1, None), slice(None, None, -2), []]
)
def test_steps_are_read_in_the_order_asked_for(
    steps: Any, write: Callable[[Path, Result], Path], tmp_path: Path
) -> None:
    result = plane()
    suffix = ".h5" if write is write_hdf5 else ".npz"
    for series in (series_of(result), MeshSeries.open(write(tmp_path / f"a{suffix}", result))):
        np.testing.assert_array_equal(series.read(steps, ["p"])[..., 0], result.fields["p"][steps])


def test_a_step_beyond_the_last_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        series_of(plane()).read([3])


def test_an_unknown_channel_is_told_with_those_there_are() -> None:
    with pytest.raises(MeshError, match="no channel 'T'; there are p, U_x, U_y, U_z"):
        series_of(plane()).read([0], ["T"])


@given(st.lists(st.integers(0, 6), max_size=12))
def test_runs_cover_the_steps_once_in_order(steps: list[int]) -> None:
    runs = list(_runs(steps))
    assert [i for first, last in runs for i in range(first, last)] == list(range(len(steps)))
    for first, last in runs:
        assert steps[first:last] == list(range(steps[first], steps[first] + last - first))
    assert all(steps[last] != steps[last - 1] + 1 for _, last in runs[:-1])


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": [0.0, 1.0, 1.0]}, "times: 1 at step 2 follows 1; they must increase strictly"),
        ({"times": [0.0, np.nan, 1.0]}, "times: nan at step 1"),
        ({"times": []}, r"times: shape \(0,\)"),
        ({"times": ["a", "b", "c"]}, "times: dtype <U1; give numbers"),
        ({"times": [0.0, 1.0]}, "fields/p: 3 steps where 'times' has 2"),
        ({"fields": {"p": np.zeros((3, 5))}}, "fields/p: 5 values a step where the mesh has 6 nodes"),
        ({"fields": {"p": np.zeros((3, 6), int)}}, "fields/p: dtype int64; give float32 or float64"),
        ({"fields": {"p": np.zeros((3, 6), complex)}}, "fields/p: dtype complex128"),
        ({"fields": {"p": np.zeros(6)}}, r"fields/p: shape \(6,\); give \[time, node\]"),
        ({"fields": {}}, "no field has values at the nodes"),
        ({"fields": {"U": np.zeros((3, 6, 3)), "U_x": np.zeros((3, 6))}}, "two channels are named 'U_x'"),
        ({"cells": np.zeros((1, 5), int)}, "cells: 5 corners a cell"),
        ({"cells": np.zeros((1, 3))}, "cells: dtype float64; give integers"),
        ({"cells": {"triangle": np.zeros(3, int)}}, r"cells/triangle: shape \(3,\)"),
        ({"units": {"T": "K"}}, "units: no field 'T'"),
        ({"points": np.full((6, 2), np.nan)}, "mesh points: .*NaN"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MeshError, match=message) as caught:
        series_of(plane(), **changes)
    assert "\n" not in str(caught.value)


def test_four_corners_are_tetrahedra_in_space_and_quadrilaterals_in_a_plane() -> None:
    fields = {"p": np.zeros((1, 4))}
    solid = MeshSeries.from_arrays([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [0], fields, [[0, 1, 2, 3]])
    flat = MeshSeries.from_arrays([[0, 0, 5], [1, 0, 5], [1, 1, 5], [0, 1, 5]], [0], fields, [[0, 1, 2, 3]])
    assert list(solid.mesh.cells) == ["tetra"]
    assert list(flat.mesh.cells) == ["quad"]
    assert flat.mesh.points.shape == (4, 2)
    assert any("third coordinate is 5" in notice for notice in flat.notices)


# ---- hashes


@pytest.mark.parametrize("write", [write_npz, write_npz_compressed, write_hdf5])
@pytest.mark.parametrize("result", [plane(), space()])
def test_hashes_are_the_same_from_arrays_and_files(
    result: Result, write: Callable[[Path, Result], Path], tmp_path: Path
) -> None:
    suffix = ".h5" if write is write_hdf5 else ".npz"
    opened = MeshSeries.open(write(tmp_path / f"a{suffix}", result))
    assert opened.invalidation_key() == series_of(result).invalidation_key()


@pytest.mark.parametrize("blocks", [1, 200, 10**9])
def test_hashes_do_not_depend_on_how_much_is_held_at_once(
    blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = series_of(plane(7))
    whole = series.channel_sha256(series.channels)
    monkeypatch.setattr(mesh_data, "_HASH_NBYTES", blocks)
    assert series.channel_sha256(series.channels) == whole


def test_byte_order_and_layout_of_arrays_do_not_enter_the_hashes() -> None:
    result = plane()
    fields = {"p": result.fields["p"].astype(">f4"), "U": np.asfortranarray(result.fields["U"])}
    cells = {kind: nodes.astype(">i4") for kind, nodes in reversed(list(result.cells.items()))}
    other = series_of(result, points=result.points.astype(">f8"), fields=fields, cells=cells)
    assert other.invalidation_key() == series_of(result).invalidation_key()


def nudged(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[-1] = np.nextafter(changed.flat[-1], 9)
    return changed


def test_each_number_enters_its_own_hash() -> None:
    result = plane()
    first = series_of(result).invalidation_key()
    assert series_of(result, points=nudged(result.points)).mesh_sha256() != first["mesh"]
    turned = {**result.cells, "triangle": result.cells["triangle"][:, [1, 2, 0]]}
    assert series_of(result, cells=turned).mesh_sha256() != first["mesh"]
    later = series_of(result, times=nudged(result.times)).invalidation_key()
    assert (later["mesh"], later["channels"]) == (first["mesh"], first["channels"])
    assert later["times"] != first["times"]
    other = series_of(result, fields={**result.fields, "U": nudged(result.fields["U"])}).invalidation_key()
    differ = {name for name in first["channels"] if other["channels"][name] != first["channels"][name]}
    assert differ == {"U_z"}


def test_dtype_and_shape_enter_the_hashes() -> None:
    zeros = series_of(plane(), fields={"p": np.zeros((3, 6), np.float32)}).channel_sha256(["p"])
    assert series_of(plane(), fields={"p": np.zeros((3, 6))}).channel_sha256(["p"]) != zeros
    longer = series_of(plane(6), fields={"p": np.zeros((6, 6), np.float32)})
    assert longer.channel_sha256(["p"]) != zeros


def test_arrays_that_were_written_to_are_hashed_anew() -> None:
    result = plane()
    series = series_of(result)
    before = series.invalidation_key()
    result.fields["p"][0, 0] += 1
    assert series.invalidation_key() != before


def test_a_key_of_some_channels_holds_these_only(tmp_path: Path) -> None:
    series = MeshSeries.open(write_npz(tmp_path / "a.npz", plane()))
    assert set(series.key(["U_x"]).invalidation_key()["channels"]) == {"U_x"}


# ---- what is remembered of files


@pytest.mark.usefixtures("quiet")
def test_a_known_file_is_opened_and_hashed_without_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "a.npz", plane())
    first = MeshSeries.open(path)
    key = first.invalidation_key()
    monkeypatch.setattr(mesh_series, "read_mesh_file", forbidden)
    again = MeshSeries.open(path)
    assert again.invalidation_key() == key
    assert (again.channels, again.nodes, again.dtypes) == (first.channels, first.nodes, first.dtypes)
    assert again.times.tolist() == first.times.tolist()
    with pytest.raises(AssertionError, match="a file was read"):
        again.mesh  # noqa: B018


@pytest.mark.usefixtures("quiet")
def test_only_channels_that_are_not_known_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_npz(tmp_path / "a.npz", plane())
    MeshSeries.open(path).channel_sha256(["p"])
    read: list[str] = []
    hashed = mesh_series.channel_sha256
    monkeypatch.setattr(
        mesh_series, "channel_sha256", lambda data, names: read.extend(names) or hashed(data, names)
    )
    MeshSeries.open(path).channel_sha256(["U_x", "p"])
    assert read == ["U_x"]


@pytest.mark.usefixtures("quiet")
def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", plane())
    before = MeshSeries.open(path).invalidation_key()
    write_npz(path, plane(seed=1))
    after = MeshSeries.open(path).invalidation_key()
    assert after["channels"] != before["channels"]
    assert after["mesh"] == before["mesh"]


@pytest.mark.usefixtures("quiet")
def test_rehash_believes_nothing_that_is_remembered(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", plane())
    key = MeshSeries.open(path).invalidation_key()
    [memo] = (tmp_path / "cache" / "file-hashes" / mesh_series._KIND).iterdir()
    memo.write_text(memo.read_text().replace(key["channels"]["p"], "0" * 64))
    assert MeshSeries.open(path).invalidation_key()["channels"]["p"] == "0" * 64
    assert MeshSeries.open(path).invalidation_key(rehash=True) == key
    assert MeshSeries.open(path).invalidation_key() == key  # and mends it


@pytest.mark.usefixtures("quiet")
def test_a_wrong_memory_of_the_mesh_is_told_and_mended(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", plane())
    key = MeshSeries.open(path).invalidation_key()
    [memo] = (tmp_path / "cache" / "file-hashes" / mesh_series._KIND).iterdir()
    memo.write_text(memo.read_text().replace(key["mesh"], "0" * 64))
    with pytest.raises(MeshError, match="open it again"):
        MeshSeries.open(path).invalidation_key(rehash=True)
    assert MeshSeries.open(path).invalidation_key() == key


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("use", ["read", "mesh", "hash", "mesh hash"])
def test_a_file_that_changes_under_a_series_is_told(tmp_path: Path, use: str) -> None:
    path = write_npz(tmp_path / "a.npz", plane())
    series = MeshSeries.open(path)
    series.invalidation_key()
    write_npz(path, plane(seed=1))
    uses: dict[str, Callable[[], object]] = {
        "read": lambda: series.read([0]),
        "mesh": lambda: series.mesh,
        "hash": lambda: series.channel_sha256(["p"]),
        "mesh hash": series.mesh_sha256,
    }
    with pytest.raises(MeshError, match=r"a\.npz has changed since it was opened; open it again"):
        uses[use]()


def test_a_file_that_changes_while_it_is_hashed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "a.npz", plane())
    series = MeshSeries.open(path)
    hashed = mesh_series.channel_sha256

    def hash_and_change(*given: Any) -> Any:
        found = hashed(*given)
        write_npz(path, plane(seed=1))
        return found

    monkeypatch.setattr(mesh_series, "channel_sha256", hash_and_change)
    with pytest.raises(MeshError, match="changed since it was opened"):
        series.channel_sha256(["p"])


# ---- other processes


def first_values(series: MeshSeries) -> Any:
    return os.getpid(), series.read([1], ["p"]).tolist(), series.mesh.points.tolist()


@pytest.mark.parametrize("kind", ["arrays", "npz", "hdf5"])
def test_workers_read_the_same_values(kind: str, tmp_path: Path) -> None:
    result = plane()
    series = series_of(result)
    if kind == "npz":
        series = MeshSeries.open(write_npz(tmp_path / "a.npz", result))
    if kind == "hdf5":
        series = MeshSeries.open(write_hdf5(tmp_path / "a.h5", result))
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        pid, values, points = pool.submit(first_values, series).result()
    assert pid != os.getpid()
    assert (values, points) == first_values(series)[1:]


def test_a_series_of_a_file_is_pickled_without_its_values(tmp_path: Path) -> None:
    series = MeshSeries.open(write_npz(tmp_path / "a.npz", plane(2000)))
    series.read([0])
    text = pickle.dumps(series)
    assert len(text) < series.read(slice(None), ["p"]).nbytes
    copy = pickle.loads(text)
    assert copy.invalidation_key() == series.invalidation_key()


def test_a_pickled_series_notices_that_its_file_has_changed(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", plane())
    text = pickle.dumps(MeshSeries.open(path))
    write_npz(path, plane(4))
    with pytest.raises(MeshError, match="changed since it was opened"):
        pickle.loads(text).read([0])


def test_a_forked_process_opens_the_file_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers may keep a file open, and a fork shares its place in it."""
    series = MeshSeries.open(write_npz(tmp_path / "a.npz", plane()))
    series.read([0])
    monkeypatch.setattr(mesh_series.os, "getpid", lambda: -1)
    monkeypatch.setattr(mesh_series, "read_mesh_file", forbidden)
    with pytest.raises(AssertionError, match="a file was read"):
        series.read([0])


def test_importing_a_series_loads_no_heavy_library() -> None:
    code = (
        "import sys, parbake.producers.meshes.series\n"
        "heavy = {'scipy', 'h5py', 'vtkmodules', 'pyvista', 'torch', 'zarr'}\n"
        "print(heavy & {name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- real data


@pytest.mark.parametrize("name", ["coarse", "finest"])
def test_the_real_cylinder_is_read_as_numpy_reads_it(name: str) -> None:
    path = DATA / "cylinder" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"needs the real flow {path.name}, which is not part of the repository")
    series = MeshSeries.open(path)
    with np.load(path) as found:
        assert series.channels == ("vx", "vy", "p", "T")
        np.testing.assert_array_equal(series.times, found["times"])
        np.testing.assert_array_equal(series.mesh.points, found["points"])
        np.testing.assert_array_equal(series.mesh.cells["triangle"], found["cells"])
        np.testing.assert_array_equal(
            series.read([39, 0], ["T", "vx"]), found["fields"][[39, 0]][..., [3, 0]]
        )
        fields = {key: found["fields"][..., i] for i, key in enumerate(found["field_names"].tolist())}
        same = MeshSeries.from_arrays(found["points"], found["times"], fields, found["cells"])
    assert same.invalidation_key() == series.invalidation_key()
