"""Pairs of mesh series: what is paired, what the keys see, what is kept and used again."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result
from grids import box, ring
from hypothesis import given
from hypothesis import strategies as st
from mesh_results import plane, write_pvd
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator

import parbake
from parbake import ProducerError, RecipeError, StaleStoreError
from parbake.cli import main
from parbake.errors import MeshError
from parbake.producers import MeshPair, MeshSeries
from parbake.producers.cached import cached
from parbake.producers.computed import ComputedStore
from parbake.producers.meshes import operators as mesh_operator
from parbake.producers.meshes.pair import all_pairs, paired_times
from parbake.store.keys import compare, producer_keys
from parbake.store.store import Store

TIMES = np.arange(5) * 0.1


def wave(points: NDArray[np.float64], time_s: float) -> NDArray[np.float64]:
    return np.asarray(np.sin(3 * points[:, 0] + time_s) * np.cos(2 * points[:, 1]))


def fields(points: NDArray[np.float64], times: NDArray[np.float64]) -> dict[str, NDArray[np.float32]]:
    """p [time, node] and U [time, node, 2]."""
    p = np.stack([wave(points, t) for t in times])
    return {"p": p.astype("f4"), "U": np.stack([p + 1, 2 * p], axis=2).astype("f4")}


def series(steps: int = 4, times: NDArray[np.float64] = TIMES, **changed: Any) -> MeshSeries:
    points, cells = box("triangle", steps)
    given = {"points": points, "times": times, "fields": fields(points, times), "cells": cells, **changed}
    return MeshSeries.from_arrays(**given)


def with_nan(steps: int = 6) -> MeshSeries:
    points, _ = box("triangle", steps)
    values = fields(points, TIMES)
    values["p"][:, 3] = np.nan
    return series(steps, fields=values)


def write(path: Path, found: MeshSeries) -> Path:
    """A series of p alone as .npz."""
    values = found.read(slice(None), ["p"])
    cells = found.mesh.cells["triangle"]
    np.savez(path, points=found.mesh.points, cells=cells, times=found.times, fields=values, field_names=["p"])
    return path


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "home"))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows with every operator that is computed."""
    calls: list[Any] = []
    build: Callable[..., Any] = mesh_operator.build_operator
    monkeypatch.setattr(mesh_operator, "build_operator", lambda *a, **k: (calls.append(k), build(*a, **k))[1])
    return calls


# ---- what is computed


def test_a_pair_holds_the_coarse_fields_at_the_fine_nodes_beside_the_fine_ones(tmp_path: Path) -> None:
    coarse, fine = series(4), series(9)
    with cached(MeshPair(coarse, fine, residual=True), tmp_path, progress=False) as store:
        assert isinstance(store, Store)
        found = store.read(slice(None))
        assert store["coarse_interp"].shape == (5, 100, 3)
        assert store.coords["channel"].labels == ("p", "U_x", "U_y")
    np.testing.assert_array_equal(found["time"], TIMES)
    np.testing.assert_array_equal(found["fine_features"], fine.read(slice(None)))
    np.testing.assert_array_equal(found["residual"], found["fine_features"] - found["coarse_interp"])
    assert 0 < np.abs(found["residual"]).max() < 0.2


def test_linear_fields_come_out_exactly(tmp_path: Path) -> None:
    def linear(steps: int) -> MeshSeries:
        x, y = box("triangle", steps)[0].T
        return series(steps, fields={"p": np.stack([2 * x - y + time for time in TIMES])})

    pair = MeshPair(linear(4), linear(7), residual=True, dtype="float64")
    with cached(pair, tmp_path, progress=False) as store:
        assert np.abs(store["residual"][:]).max() < 1e-12


def test_the_real_cylinder_is_as_scipy_has_it_where_triangulations_agree(tmp_path: Path) -> None:
    data = Path(__file__).resolve().parents[2] / "shared" / "data" / "cylinder"
    if not data.is_dir():
        pytest.skip("needs the cylinder flow, which is not part of the repository")
    pair = MeshPair(data / "coarse.npz", data / "medium.npz")
    with cached(pair, tmp_path, progress=False) as store:
        assert store.samples == 40
        step = store.read([7])
    loaded = dict(np.load(data / "coarse.npz"))
    from scipy.spatial import Delaunay

    real = {tuple(sorted(cell)) for cell in loaded["cells"].tolist()}
    triangles = Delaunay(loaded["points"])
    points = pair.target_series.mesh.points
    where = triangles.find_simplex(points)
    shared = np.array([w >= 0 and tuple(sorted(triangles.simplices[w])) in real for w in where])
    assert shared.mean() > 0.5
    scipy = LinearNDInterpolator(triangles, loaded["fields"][7])(points)
    np.testing.assert_allclose(step["coarse_interp"][0][shared], scipy[shared], atol=2e-6)


def test_xarray_sees_channels_and_positions(tmp_path: Path) -> None:
    pair = MeshPair(
        series(3), series(4, units={"p": "Pa", "U": "m/s"}), channels=("U_y", "p"), dtype="float64"
    )
    with cached(pair, tmp_path, progress=False) as store, xr.open_zarr(store.path) as dataset:
        assert dataset["coarse_interp"].dims == ("sample", "node", "channel")
        assert dataset["coarse_interp"].dtype == np.float64
        assert "U_y (m/s), p (Pa)" in dataset["coarse_interp"].attrs["long_name"]
        assert json.loads(dataset["channel"].attrs["labels"]) == ["U_y", "p"]
        np.testing.assert_array_equal(dataset["x"], pair.target_series.mesh.points[:, 0])
        assert dataset["y"].dims == ("node",)
        assert dataset["time"].attrs["units"] == "s"
        statistics = json.loads(dataset["fine_features"].attrs["statistics"])
        assert len(statistics["channels"]["std"]) == 2


def test_nodes_outside_may_be_nan_and_are_told(tmp_path: Path) -> None:
    points, cells = ring(24, 4)  # a disc with a hole: the square's corners are outside
    times = TIMES[:1]
    coarse = MeshSeries.from_arrays(points, times, fields(points, times), cells)
    square, _ = box("triangle", 6)
    square = 1.2 * (square - 0.5)
    fine = MeshSeries.from_arrays(square, times, fields(square, times))
    pair = MeshPair(coarse, fine, outside="nan", max_distance=1.0)
    with cached(pair, tmp_path, progress=False) as store:
        found = store["coarse_interp"][0]
        np.testing.assert_array_equal(np.isnan(found).all(axis=1), ~pair.operator.valid)
        assert any("lie outside" in notice for notice in store.provenance["notices"])  # type: ignore[union-attr]
    with pytest.raises(MeshError, match="max_distance"):
        _ = MeshPair(coarse, fine, max_distance=0.01).operator


def test_nan_of_the_series_is_taken_where_it_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(ProducerError, match="allow_nan=True"):
        cached(MeshPair(with_nan(4), with_nan()), tmp_path, progress=False)
    with cached(MeshPair(with_nan(4), with_nan(), allow_nan=True), tmp_path, progress=False) as store:
        found = store.read(slice(None))
    assert np.isnan(found["fine_features"][:, 3, 0]).all()
    assert 0 < np.isnan(found["coarse_interp"][..., 0]).mean() < 0.3
    assert not np.isnan(found["coarse_interp"][..., 1:]).any()


def test_times_that_were_float32_late_in_a_run_pair_all_the_same() -> None:
    late = 5000 + np.arange(40) * 0.025
    pair = MeshPair(series(3, late.astype("f4").astype("f8")), series(4, late))
    assert len(pair) == 40


def test_computed_on_the_fly_it_gives_the_same(tmp_path: Path) -> None:
    pair = MeshPair(series(4), series(6), residual=True)
    computed = cached(pair, tmp_path, use_cache=False)
    assert isinstance(computed, ComputedStore)
    with cached(pair, tmp_path, progress=False) as store:
        for name, values in store.read([4, 0, 2]).items():
            np.testing.assert_array_equal(computed.read([4, 0, 2])[name], values)


def test_worker_processes_bake_it_too(tmp_path: Path) -> None:
    pair = MeshPair(write(tmp_path / "a.npz", series(4)), write(tmp_path / "b.npz", series(6)))
    _ = pair.operator
    again = pickle.loads(pickle.dumps(pair))
    np.testing.assert_array_equal(
        again.produce(0, 2, ["coarse_interp"])["coarse_interp"],
        pair.produce(0, 2, ["coarse_interp"])["coarse_interp"],
    )
    with (
        parbake.process_pool(1) as pool,
        parbake.bake(pair, tmp_path / "s.zarr", executor=pool, progress=False) as store,
    ):
        np.testing.assert_array_equal(store["fine_features"][:], series(6).read(slice(None), ["p"]))


def test_values_beyond_the_stored_dtype_are_refused(tmp_path: Path) -> None:
    high = MeshSeries.from_arrays(box("triangle", 6)[0], TIMES, {"p": np.full((5, 49), 1e300)})
    with pytest.raises(MeshError, match="fine_features: values beyond float32"):
        cached(MeshPair(series(4), high), tmp_path, progress=False)
    with cached(MeshPair(series(4), high, dtype="float64"), tmp_path, progress=False) as store:
        assert (store["fine_features"][:] == 1e300).all()


def test_units_that_differ_are_told(tmp_path: Path) -> None:
    pair = MeshPair(series(4, units={"p": "kPa", "U": "m/s"}), series(6, units={"p": "Pa", "U": "m/s"}))
    assert pair.notices == ("p: kPa in the source, Pa in the target; not converted",)


# ---- which steps


@pytest.mark.parametrize(
    ("options", "pairs", "lone"),
    [
        ({}, [(0, 0), (1, 2), (2, 4)], ["target: 3 of 6 steps have no partner: 0.1, 0.3, 0.5 s"]),
        ({"time_tolerance": 0.11}, [(0, 0), (1, 2), (2, 4)], ["target: 3 of 6"]),
        ({"step_offset": 0}, [(0, 0), (1, 1), (2, 2)], ["target: 3 of 6 steps have no partner: 0.3, 0.4"]),
        ({"step_offset": 4}, [(0, 4), (1, 5)], ["source: 1 of 3", "target: 4 of 6"]),
        ({"step_offset": -1}, [(1, 0), (2, 1)], ["source: 1 of 3", "target: 4 of 6"]),
    ],
)
def test_steps_pair_by_time_or_by_number(
    options: dict[str, Any], pairs: list[tuple[int, int]], lone: list[str]
) -> None:
    coarse = series(3, np.array([0.0, 0.2 + 1e-7, 0.4]))
    pair = MeshPair(coarse, series(4, np.arange(6) * 0.1), **options)
    assert [*map(tuple, pair.steps.tolist())] == pairs
    for text in lone:
        assert any(text in notice for notice in pair.notices)
    produced = pair.produce(0, len(pairs), ["fine_features", "time"])
    expected = pair.target_series.read([fine for _, fine in pairs])
    np.testing.assert_array_equal(produced["fine_features"], expected)
    np.testing.assert_array_equal(produced["time"], np.arange(6)[[fine for _, fine in pairs]] * 0.1)


ascending = st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True).map(sorted)


@given(ascending, ascending, st.integers(0, 5))
def test_times_pair_with_their_nearest_and_each_once(
    coarse: list[int], fine: list[int], tolerance: int
) -> None:
    pairs = paired_times(np.array(coarse, float), np.array(fine, float), float(tolerance)).tolist()
    assert pairs == sorted(pairs)
    assert len({i for i, _ in pairs}) == len(pairs) == len({j for _, j in pairs})
    for i, j in pairs:
        assert abs(coarse[i] - fine[j]) == min(abs(time - fine[j]) for time in coarse) <= tolerance
    for j, time in enumerate(fine):  # what is left out has no nearest one, or that took a nearer one
        if j not in {fine_step for _, fine_step in pairs}:
            nearest = min(abs(t - time) for t in coarse)
            rivals = [abs(coarse[i] - fine[k]) for i, k in pairs]
            assert nearest > tolerance or any(rival <= nearest for rival in rivals)


# ---- keys


def test_keys_are_the_same_for_arrays_and_files(tmp_path: Path) -> None:
    only_p = [series(n, fields={"p": fields(box("triangle", n)[0], TIMES)["p"]}) for n in (4, 6)]
    files = [write(tmp_path / f"{i}.npz", one) for i, one in enumerate(only_p)]
    in_memory, on_disk = producer_keys(MeshPair(*only_p))[0], producer_keys(MeshPair(*files))[0]
    assert compare(in_memory, on_disk).changes == ()


def test_what_the_values_depend_on_is_a_key_and_nothing_else() -> None:
    coarse, fine = series(4), series(6)
    base = producer_keys(MeshPair(coarse, fine, channels=("p",)))[0]
    points, _ = box("triangle", 6)
    moved = points.copy()
    moved[24] += 1e-9  # as many nodes, the same mean but for round-off
    louder = fields(points, TIMES)
    louder["p"][3, 17] += 1e-3
    unused = fields(points, TIMES)
    unused["U"] += 5
    for changed, path in (
        (series(6, points=moved), "target.mesh"),
        (series(6, fields=louder), "target.channels.p"),
        (series(6, times=TIMES + 1e-6, fields=fields(points, TIMES)), "target.times"),
        (series(6, fields=unused), None),
    ):
        changes = compare(base, producer_keys(MeshPair(coarse, changed, channels=("p",)))[0]).changes
        assert {c.path for c in changes if c.field is None} == ({path} if path else set())
    for options, path in (
        ({"method": "nearest"}, "method"),
        ({"outside": "nearest"}, "outside"),
        ({"max_distance": 0.5}, "max_distance"),
        ({"time_tolerance": 0.05}, "time_tolerance"),
        ({"operators": Path("elsewhere")}, None),
    ):
        pair = MeshPair(coarse, fine, channels=("p",), **options)  # type: ignore[arg-type]
        changes = compare(base, producer_keys(pair)[0]).changes
        assert {c.path for c in changes if c.field is None} == ({path} if path else set())


def test_two_simulations_of_equal_size_do_not_share_a_store(tmp_path: Path) -> None:
    """The mistake of caches that are named by the numbers of nodes."""
    points, cells = box("triangle", 4)
    other = MeshSeries.from_arrays(points, TIMES, {"p": np.ones((5, len(points)), "f4")}, cells)
    fine = series(6)
    first = cached(MeshPair(series(4), fine, channels=("p",)), tmp_path, progress=False)
    second = cached(MeshPair(other, fine, channels=("p",)), tmp_path, progress=False)
    assert first.path != second.path
    np.testing.assert_allclose(second["coarse_interp"][:], 1, atol=1e-6)


def test_a_store_says_which_side_changed(tmp_path: Path) -> None:
    pair = MeshPair(series(4), series(6))
    parbake.bake(pair, tmp_path / "s.zarr", progress=False).close()
    louder = MeshPair(series(4, fields=_doubled(4)), series(6))
    with pytest.raises(StaleStoreError, match=r"source\.channels\.p: "):
        parbake.bake(louder, tmp_path / "s.zarr", progress=False)


# ---- operators


def test_an_operator_is_computed_once_for_other_fields_times_and_processes(
    tmp_path: Path, built: list[Any]
) -> None:
    coarse, fine = series(4), series(6)
    cached(MeshPair(coarse, fine), tmp_path, progress=False).close()
    assert len(built) == 1
    later = TIMES + 7
    for pair in (
        MeshPair(coarse, fine, channels=("p",)),
        MeshPair(series(4, later), series(6, later)),
        MeshPair(coarse, fine, residual=True, dtype="float64"),
    ):
        first = cached(pair, tmp_path, progress=False)
        np.testing.assert_allclose(
            first["coarse_interp"][0], cached(pair, use_cache=False)["coarse_interp"][0], atol=1e-6
        )
    assert len(built) == 2  # the computed one keeps its own in the cache folder of the user
    cached(MeshPair(coarse, fine, method="nearest"), tmp_path, progress=False).close()
    assert len(built) == 3


def test_a_kept_operator_is_the_one_that_was_built(tmp_path: Path, built: list[Any]) -> None:
    for method in ("linear", "nearest", "idw", "rbf"):
        pairs = [MeshPair(series(4), series(7), method=method, operators=tmp_path) for _ in range(2)]  # type: ignore[arg-type]
        one, two = (pair.operator for pair in pairs)
        np.testing.assert_array_equal(one.matrix.toarray(), two.matrix.toarray())
        np.testing.assert_array_equal(one.valid, two.valid)
        np.testing.assert_array_equal(one.distance, two.distance)
        assert one.notices == two.notices
    assert len(built) == 4


def test_without_a_place_to_keep_it_an_operator_is_built_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pair = MeshPair(series(4), series(6), operators=tmp_path / "file" / "folder")
    assert pair.operator.matrix.shape == (49, 25)


# ---- all pairs, from the command line


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    folder = tmp_path / "sim"
    folder.mkdir()
    for name, steps in {"z": 3, "m": 5, "a": 8}.items():
        write(folder / f"{name}.npz", series(steps))
    (folder / "notes.txt").write_text("ours")
    return folder


def test_all_pairs_go_from_coarse_to_fine(meshes: Path) -> None:
    names = [(Path(str(p.source)).stem, Path(str(p.target)).stem) for p in all_pairs(meshes)]
    assert names == [("z", "m"), ("z", "a"), ("m", "a")]


def test_a_result_that_cannot_be_read_is_told(meshes: Path, tmp_path: Path) -> None:
    (meshes / "a.npz").write_bytes((meshes / "a.npz").read_bytes()[:-100])
    result = run("build", "mesh", "--meshes", meshes, "--all-pairs", "--cache", tmp_path / "cache")
    assert result.exit_code == 0, result.output
    assert "a.npz: not an .npz file" in result.stderr
    assert "notes.txt" not in result.stderr
    assert result.stderr.count(" of 1: ") == 1


def test_series_of_equal_size_make_no_pair_and_that_is_said(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.npz", series(4))
    with pytest.raises(MeshError, match="all 2 mesh series in it have 25 nodes"):
        list(all_pairs(tmp_path))


def test_the_steps_of_a_collection_are_no_series_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("vtkmodules")
    write_pvd(tmp_path / "coarse.pvd", plane())
    write(tmp_path / "fine.npz", series(4))
    names = [(Path(str(p.source)).name, Path(str(p.target)).name) for p in all_pairs(tmp_path)]
    assert names == [("coarse.pvd", "fine.npz")]


def test_all_pairs_are_baked_skipped_when_fresh_and_baked_when_stale(meshes: Path, tmp_path: Path) -> None:
    command = ("build", "mesh", "--meshes", meshes, "--all-pairs", "--cache", tmp_path / "cache")
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert result.output.count("baked in") == 3
    assert "z.npz -> m.npz" in result.output
    assert run(*command).output.count("nothing left to bake") == 3
    write(meshes / "a.npz", series(8, TIMES + 0.0, fields=_doubled(8)))
    again = json.loads(run(*command, "--json").stdout)
    assert [pair["samples_baked"] for pair in again["pairs"]] == [0, 5, 5]
    listed = run("ls", tmp_path / "cache").output
    assert "z.npz, m.npz" in listed


def _doubled(steps: int) -> dict[str, NDArray[np.float32]]:
    return {name: 2 * values for name, values in fields(box("triangle", steps)[0], TIMES).items()}


def test_a_baked_pair_checks_itself_without_a_recipe(meshes: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    options = ("--source", meshes / "z.npz", "--target", meshes / "a.npz", "--residual")
    assert run("build", "mesh", *options, "-o", store).exit_code == 0
    assert run("check", store).output == "fresh\n"
    shown = run("inspect", store).output
    assert "channel: p\n" in shown
    assert shown.count("\n  p ") == 3  # a line of statistics for each field's channel
    write(meshes / "z.npz", series(3, fields=_doubled(3)))
    result = run("check", store)
    assert result.exit_code == 1
    assert "source.channels.p" in result.output


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--all-pairs", "--cache", "c"), "go together"),
        (("--meshes", ".", "--cache", "c"), "go together"),
        (("--meshes", ".", "--all-pairs", "-o", "s.zarr"), "--cache DIR"),
        (("--meshes", ".", "--all-pairs", "--cache", "c", "--source", "z.npz"), "is one pair"),
        (("-o", "s.zarr", "--source", "z.npz"), "target: missing"),
        (("-o", "s.zarr", "--source", "z.npz", "--target", "absent.npz"), "absent.npz"),
        (("-o", "s.zarr", "--source", "z.npz", "--target", "notes.txt"), "notes.txt"),
        (("-o", "s.zarr", "--source", "z.npz", "--target", "a.npz", "--channels", "q"), "no channel 'q'"),
        (("-o", "s.zarr", "--source", "z.npz", "--target", "a.npz", "--method", "cubic"), "cubic"),
    ],
)
def test_a_command_that_makes_no_pair_is_refused_in_one_line(
    meshes: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], text: str
) -> None:
    monkeypatch.chdir(meshes)
    result = run("build", "mesh", *args)
    assert result.exit_code in (1, 2)
    errors = [line for line in result.output.splitlines() if line.startswith("parbake: error:")]
    assert len(errors) == 1
    assert text in errors[0]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: MeshPair(series(4), series(6, TIMES + 50)), "no steps belong together"),
        (lambda: MeshPair(series(4), series(6), step_offset=9), "no steps belong together"),
        (lambda: MeshPair(series(4), series(6, fields={"q": np.zeros((5, 49))})), "share no channel"),
        (lambda: MeshPair(series(4), series(6), channels=("z",)), "no channel 'z' in the source"),
        (lambda: MeshPair(series(4), series(6), time_tolerance=-1), "is negative"),
        (lambda: MeshPair(series(4), series(6), time_tolerance=1, step_offset=1), "exclude each other"),
        (lambda: MeshPair(series(4), series(6), max_distance=np.inf), "no finite number"),
        (lambda: MeshPair(series(4), series(6), channels=("p", "p")), "name one twice"),
        (lambda: MeshPair(series(4), series(6, points=box("triangle", 6)[0] + 90)), "do not overlap"),
        (lambda: MeshPair(series(4), 3), "is not"),
    ],
)
def test_pairs_that_cannot_be_are_refused_in_one_line(
    make: Callable[[], MeshPair], text: str, tmp_path: Path
) -> None:
    with pytest.raises((MeshError, RecipeError)) as caught:
        parbake.bake(make(), tmp_path / "never.zarr", progress=False)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("never.zarr*"))
