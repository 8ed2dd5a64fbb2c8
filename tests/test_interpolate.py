"""Operators: exact where they promise it, equal to SciPy, VTK and scikit-fem, and honest outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import DATA
from grids import KINDS, box, ring, warped
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parbake.errors import MeshError
from parbake.producers.meshes.elements import ELEMENTS
from parbake.producers.meshes.geometry import Mesh, all_faces
from parbake.producers.meshes.interpolate import Operator, build_operator
from parbake.producers.meshes.neighbours import RBF_NEIGHBOURS

METHODS = ("linear", "nearest", "idw", "rbf")
Reals = NDArray[np.float64]


def linear_field(points: Reals) -> Reals:
    return points @ [1.5, -2.0, 0.5][: points.shape[1]] + 3


def wavy_field(points: Reals) -> Reals:
    return np.sin(3 * points[:, 0]) * np.cos(2 * points[:, 1]) + points[:, -1] ** 2


def in_cells(values: Reals, cells: dict[str, NDArray[np.int64]], count: int = 400) -> Reals:
    """Nodal ``values`` at random local coordinates of random cells, the same ones at every call."""
    rng = np.random.default_rng(7)
    [(kind, nodes)] = cells.items()
    local = rng.dirichlet(np.ones(ELEMENTS[kind].dim + 1), count)[:, 1:]
    chosen = values[nodes[rng.integers(0, len(nodes), count)]]
    return np.einsum("nc,nc...->n...", ELEMENTS[kind].values(local), chosen)


inner_points = in_cells  # of the nodes' coordinates: points in the mesh, by construction


def applied(operator: Operator, field: NDArray[Any]) -> NDArray[Any]:
    return operator.apply(field[None, :, None])[0, :, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("thin", [1.0, 1e-4])
def test_any_field_is_the_cells_own_and_a_linear_one_exact(kind: str, thin: float) -> None:
    points, cells = box(kind, 5, warp=0.05)
    dim = points.shape[1]
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))[0]
    points = points * [thin, *[1] * (dim - 1)] @ turn
    targets = in_cells(points, cells)
    operator = build_operator(Mesh(points, cells), targets, max_distance=0)
    assert operator.valid.all()
    assert not operator.distance.any()
    error = applied(operator, linear_field(points)) - linear_field(targets)
    assert np.abs(error).max() <= 1e-14
    isoparametric = in_cells(wavy_field(points), cells)
    np.testing.assert_allclose(applied(operator, wavy_field(points)), isoparametric, atol=1e-14 / thin)
    np.testing.assert_allclose(operator.matrix.sum(axis=1), 1, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_no_point_is_lost_between_two_cells(kind: str) -> None:
    """On a face, round-off may put a point outside both of its cells."""
    points, cells = box(kind, 5, warp=0.1)
    rng = np.random.default_rng(5)
    for faces in all_faces(points, cells).values():
        weights = rng.dirichlet([1] * faces.shape[1], len(faces))
        if faces.shape[1] == 4:  # bilinear, so that the point is on the face where that is warped
            weights = ELEMENTS["quad"].values(rng.random((len(faces), 2)))
        targets = np.einsum("nc,ncd->nd", weights, points[faces])
        assert build_operator(Mesh(points, cells), targets, max_distance=0).valid.all()


def test_cells_of_several_kinds_make_one_mesh() -> None:
    points, quads = box("quad", 6, warp=0.05)
    _, triangles = box("triangle", 6)
    mixed = {
        "quad": quads["quad"][:18],
        "triangle": np.concatenate([triangles["triangle"][i * 36 + 18 : i * 36 + 36] for i in (0, 1)]),
    }
    targets = inner_points(points, quads)
    operator = build_operator(Mesh(points, mixed), targets, max_distance=0.01)
    inside = operator.valid
    assert inside.all()
    assert np.abs(applied(operator, linear_field(points)) - linear_field(targets)).max() < 1e-12
    assert set(np.diff(operator.matrix.indptr)) == {3, 4}


@pytest.mark.parametrize("dim", [2, 3])
def test_clouds_equal_scipys_linear_interpolator(dim: int) -> None:
    from scipy.interpolate import LinearNDInterpolator

    rng = np.random.default_rng(0)
    points, targets = rng.random((400, dim)), rng.uniform(-0.02, 1.02, (600, dim))
    operator = build_operator(Mesh(points), targets, outside="nan", max_distance=0)
    expected = LinearNDInterpolator(points, wavy_field(points))(targets)
    np.testing.assert_allclose(applied(operator, wavy_field(points)), expected, rtol=0, atol=1e-12)
    assert 0 < np.isnan(expected).sum() < 300
    assert any("triangulated" in notice for notice in operator.notices)


def test_a_grid_without_cells_has_no_gaps() -> None:
    """Delaunay makes simplices of no volume out of nodes on one sphere; they are left out without loss."""
    points, cells = box("hexahedron", 4)
    targets = inner_points(points, cells)
    operator = build_operator(Mesh(points), targets, max_distance=0)
    assert operator.valid.all()
    assert np.abs(applied(operator, linear_field(points)) - linear_field(targets)).max() < 1e-12


@pytest.mark.parametrize("dim", [2, 3])
def test_rbf_equals_scipys_with_the_same_neighbours(dim: int) -> None:
    from scipy.interpolate import RBFInterpolator

    rng = np.random.default_rng(1)
    points, targets = 50 + 3 * rng.random((500, dim)), 50 + 3 * rng.uniform(0.2, 0.8, (300, dim))
    operator = build_operator(Mesh(points), targets, method="rbf", max_distance=0)
    values = np.stack([wavy_field(points), linear_field(points)], axis=1)
    expected = RBFInterpolator(
        points, values, neighbors=RBF_NEIGHBOURS, kernel="thin_plate_spline", degree=1
    )(targets)
    np.testing.assert_allclose(operator.apply(values[None])[0], expected, rtol=1e-9, atol=1e-9)


def test_idw_weighs_by_inverse_squares() -> None:
    rng = np.random.default_rng(2)
    points, targets = rng.random((60, 2)), rng.uniform(0.3, 0.7, (20, 2))
    found = applied(build_operator(Mesh(points), targets, method="idw", max_distance=0), wavy_field(points))
    for target, value in zip(targets, found, strict=True):
        squares = ((points - target) ** 2).sum(axis=1)
        closest = np.argsort(squares)[:8]
        assert value == pytest.approx(np.average(wavy_field(points)[closest], weights=1 / squares[closest]))


def test_nearest_takes_the_nearest_node() -> None:
    points, cells = box("quad", 7, warp=0.05)
    targets = inner_points(points, cells)
    operator = build_operator(Mesh(points, cells), targets, method="nearest", max_distance=0)
    nearest = ((targets[:, None] - points) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(operator.matrix.indices, nearest)
    assert (operator.matrix.data == 1).all()


@pytest.mark.parametrize("kind", [*KINDS, None])
@pytest.mark.parametrize("method", METHODS)
def test_a_node_on_a_node_gets_its_value_and_no_other(kind: str | None, method: Any) -> None:
    points, cells = box(kind or "triangle", 4, warp=0.05)
    points = points * [1, *[1e-4] * (points.shape[1] - 1)] + 100  # few digits are left across the cells
    mesh = Mesh(points, cells if kind else {})
    off = 2e-13 * np.random.default_rng(0).uniform(
        -1, 1, points.shape
    )  # outside of the mesh too, as round-off is
    operator = build_operator(mesh, points + off, method=method, max_distance=0)
    np.testing.assert_array_equal(operator.matrix.toarray(), np.eye(len(points)))
    assert operator.valid.all()


@pytest.mark.parametrize("method", METHODS)
def test_zeros_stay_zeros_and_nan_reaches_its_own_targets_only(method: Any) -> None:
    points, cells = box("triangle", 8)
    targets = np.concatenate([inner_points(points, cells), [[1.01, 0.5]], points])
    operator = build_operator(Mesh(points, cells), targets, method=method, outside="nan", max_distance=0)
    field = np.zeros(len(points))
    assert (operator.matrix.data != 0).all()
    zeros = applied(operator, field)
    assert np.isnan(zeros[400])
    assert (np.delete(zeros, 400) == 0).all()
    field[40] = np.nan  # the middle one
    reached = np.isnan(applied(operator, field))
    expected = operator.matrix[:, [40]].toarray()[:, 0] != 0
    expected[400] = True
    np.testing.assert_array_equal(reached, expected)
    assert reached[401:].sum() == 1  # of the targets on nodes only the one on that node
    assert 0 < reached.sum() < 0.5 * len(targets)


@pytest.mark.parametrize("kind", KINDS)
def test_outside_the_closest_boundary_point_counts(kind: str) -> None:
    """Of a box it is known; the field is linear, so its value there is too."""
    points, cells = box(kind, 3)
    rng = np.random.default_rng(3)
    targets = rng.uniform(-0.4, 1.4, (500, points.shape[1]))
    feet = np.clip(targets, 0, 1)
    operator = build_operator(Mesh(points, cells), targets, max_distance=1)
    np.testing.assert_array_equal(operator.valid, (targets == feet).all(axis=1))
    np.testing.assert_allclose(operator.distance, np.linalg.norm(targets - feet, axis=1), atol=1e-14)
    np.testing.assert_allclose(applied(operator, linear_field(points)), linear_field(feet), atol=1e-12)
    count = (~operator.valid).sum()
    assert operator.notices[0].startswith(
        f"{count} of 500 target nodes lie outside the source mesh, at most "
    )


@pytest.mark.parametrize("kind", ["tetra", "hexahedron", "wedge"])
def test_no_boundary_point_of_a_warped_mesh_is_closer(kind: str) -> None:
    points, cells = box(kind, 2, warp=0.15)
    grid = np.linspace(0, 1, 25)
    first, second = (axis.ravel() for axis in np.meshgrid(grid, grid))
    sampled = []
    for face in ELEMENTS[kind].faces:
        element = ELEMENTS["triangle" if len(face) == 3 else "quad"]
        local = np.stack([first, second], axis=1)
        local = local[element.margins(local) >= 0]
        sampled.append(
            np.einsum("lc,ncd->nld", element.values(local), points[cells[kind][:, face]]).reshape(-1, 3)
        )
    surfaces = np.concatenate(sampled)  # of all cells, inner faces too: never closer from outside
    rng = np.random.default_rng(4)
    targets = warped(rng.uniform(-0.3, 1.3, (150, 3)), 0.15)
    operator = build_operator(Mesh(points, cells), targets, max_distance=1)
    outside = ~operator.valid
    assert 60 < outside.sum() < 150
    closest = np.sqrt(((targets[outside, None] - surfaces) ** 2).sum(axis=2).min(axis=1))
    assert (operator.distance[outside] <= closest + 1e-12).all()
    assert (closest - operator.distance[outside]).max() < 0.02
    feet = operator.matrix @ points
    np.testing.assert_allclose(np.linalg.norm(feet - targets, axis=1), operator.distance, atol=1e-12)


def test_holes_are_holes() -> None:
    points, cells = ring(40, 6)
    mesh = Mesh(points, cells)
    targets = np.array([[0.0, 0.0], [0.2, 0.0], [0.0, -0.29], [0.5, 0.0], [0.0, 1.2]])
    operator = build_operator(mesh, targets, max_distance=0.2)
    assert operator.valid.tolist() == [False, False, False, True, False]
    slant = np.cos(np.pi / 40)  # the hole is a polygon with corners on the axes, closer at its edges
    np.testing.assert_allclose(
        operator.distance, [0.3 * slant, 0.1 * slant, 0.01 * slant, 0, 0.2], atol=1e-12
    )
    cloud = build_operator(Mesh(points), targets, max_distance=0.2)
    assert cloud.valid.tolist() == [True, True, True, True, False]


def test_projection_beats_the_nearest_node_on_an_arc() -> None:
    points, cells = ring(48, 8)
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 500)
    arc = np.stack([np.cos(angle), np.sin(angle)], axis=1)  # outside of the polygon that the mesh has there
    mesh, field, there = Mesh(points, cells), wavy_field(points), wavy_field(arc)
    errors = [
        np.abs(applied(build_operator(mesh, arc, outside=outside, max_distance=0.1), field) - there).mean()
        for outside in ("project", "nearest")
    ]
    assert errors[1] > 5 * errors[0]


@pytest.mark.parametrize("kind", ["triangle", "quad"])
def test_real_cells_beat_delaunay_where_they_are_stretched_and_sheared(kind: str) -> None:
    points, cells = box(kind, 16)
    shape = np.array([[1, 0], [1, 0.2]])
    targets = np.random.default_rng(0).uniform(0.1, 0.9, (2000, 2))
    at, there = targets @ shape, wavy_field(targets)
    errors = [
        np.abs(applied(build_operator(mesh, at, max_distance=0), wavy_field(points)) - there).mean()
        for mesh in (Mesh(points @ shape, cells), Mesh(points @ shape))
    ]
    assert errors[1] > 1.3 * errors[0]


def test_the_cylinder_is_a_hole_in_real_meshes() -> None:
    names = ("coarse", "medium", "fine", "finest")
    if not (DATA / "cylinder").exists():
        pytest.skip("needs the cylinder meshes, which are not part of the repository")
    loaded = {name: np.load(DATA / "cylinder" / f"{name}.npz") for name in names}
    for source in names:
        file = loaded[source]
        mesh = Mesh(file["points"], {"triangle": file["cells"]})
        assert mesh.notices == ()
        for target in names:
            points = np.concatenate([loaded[target]["points"], [[0.2, 0.2], [0.24, 0.2]]])
            operator = build_operator(mesh, points, max_distance=0.03)
            assert not operator.valid[-2:].any()
            assert operator.valid[:-2].mean() > 0.95
            error = applied(operator, linear_field(mesh.points)) - linear_field(points)
            assert np.abs(error[operator.valid]).max() < 1e-12


def test_nearest_nan_and_error_outside() -> None:
    points, cells = box("triangle", 4)
    targets = np.array([[0.4, 0.3], [1.1, 0.52], [-0.2, -0.1]])
    mesh = Mesh(points, cells)
    field = wavy_field(points)
    inside = applied(build_operator(mesh, targets[:1], max_distance=0), field)[0]
    nearest = applied(build_operator(mesh, targets, outside="nearest", max_distance=0.5), field)
    np.testing.assert_array_equal(nearest, [inside, field[22], field[0]])
    operator = build_operator(mesh, targets, outside="nan", max_distance=0)
    np.testing.assert_array_equal(applied(operator, field), [inside, np.nan, np.nan])
    assert operator.valid.tolist() == [True, False, False]
    np.testing.assert_allclose(operator.distance, [0, 0.1, np.hypot(0.2, 0.1)])
    with pytest.raises(MeshError, match=r"2 of 3 target nodes .* node 2 at \(-0.2, -0.1\), by 0.223607"):
        build_operator(mesh, targets, outside="error", max_distance=1)


@pytest.mark.parametrize("method", ["nearest", "idw", "rbf"])
def test_projection_goes_before_any_method(method: Any) -> None:
    points, cells = box("triangle", 8, warp=0.03)
    mesh = Mesh(points, cells)
    targets = np.array([[0.5, 1.2], [1.3, 1.3], [0.41, -0.2]])
    feet = build_operator(mesh, targets, max_distance=1).matrix @ points
    found = build_operator(mesh, targets, method=method, max_distance=1)
    expected = build_operator(mesh, feet, method=method, max_distance=1e-9)
    np.testing.assert_allclose(found.matrix.toarray(), expected.matrix.toarray(), atol=1e-12)
    assert not found.valid.any()


def test_duplicate_nodes_are_averaged_with_a_notice() -> None:
    points, cells = box("quad", 4)
    left, right = cells["quad"][:8], cells["quad"][8:]  # two blocks; they meet at x = 0.5
    doubled = np.concatenate([points[:15], points[10:] + 1e-15])
    mesh = Mesh(doubled, {"quad": np.concatenate([left, right + 5])})
    targets = np.concatenate([inner_points(points, cells), [[0.5, 0.1], [0.5, 0.5]]])
    operator = build_operator(mesh, targets, max_distance=0)
    assert operator.notices == ("source: 10 of 30 nodes coincide with others; their values are averaged",)
    np.testing.assert_allclose(applied(operator, linear_field(doubled)), linear_field(targets), atol=1e-12)
    jump = np.where(np.arange(len(doubled)) < 15, 1.0, 3.0)
    assert applied(operator, jump)[-2:].tolist() == [2.0, 2.0]
    outside = build_operator(mesh, np.array([[0.5, 1.1]]), max_distance=1)
    assert applied(outside, jump).tolist() == [2.0]


def test_nodes_of_no_cell_have_no_say() -> None:
    points, cells = box("triangle", 4)
    with_orphan = np.concatenate([points, [[0.51, 0.52], [9.0, 9.0]]])
    targets = np.array([[0.51, 0.52], [0.9, 0.9]])
    for method in METHODS:
        operator = build_operator(Mesh(with_orphan, cells), targets, method=method, max_distance=0)
        assert operator.matrix.shape == (2, 27)
        assert operator.matrix[:, [25, 26]].nnz == 0
        assert operator.notices == ("source: 2 of 27 nodes belong to no cell; left out",)


def test_rows_do_not_depend_on_the_order_of_targets() -> None:
    """Also where cells share a target: on their faces, edges and nodes."""
    points, cells = box("tetra", 4)
    axes = np.meshgrid(*[np.linspace(-0.1, 1, 12)] * 3)
    targets = np.stack([axis.ravel() for axis in axes], axis=1)
    order = np.random.default_rng(0).permutation(len(targets))
    mesh = Mesh(points, cells)
    one = build_operator(mesh, targets, max_distance=1).matrix
    other = build_operator(mesh, targets[order], max_distance=1).matrix
    assert (one[order] != other).nnz == 0


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_apply_keeps_the_dtype_and_equals_one_product_a_step(channels: int, dtype: Any) -> None:
    points, cells = box("triangle", 5)
    targets = inner_points(points, cells, 50)
    operator = build_operator(Mesh(points, cells), targets, max_distance=0, dtype=dtype)
    assert operator.matrix.dtype == dtype
    for kind in ("float32", "float64", ">f4"):
        values = np.random.default_rng(0).random((19, len(points), channels)).astype(kind)
        found = operator.apply(values)
        assert found.dtype == np.dtype(kind).newbyteorder("=")
        expected = operator.matrix.toarray().astype(np.float64) @ values
        np.testing.assert_allclose(
            found, expected, rtol=1e-6 if "f4" in found.dtype.str or dtype == "float32" else 1e-14
        )
    assert operator.apply(values[:0]).shape == (0, 50, channels)
    strided = np.random.default_rng(0).random((2, channels, len(points))).transpose(0, 2, 1)
    np.testing.assert_array_equal(operator.apply(strided), operator.apply(strided.copy()))


SQUARE = box("triangle", 2)


@pytest.mark.parametrize(
    ("targets", "options", "says"),
    [
        ([[0.5, np.nan]], {}, "target points: 1 of 1 nodes have NaN"),
        ([[0.5, 0.5, 0.5], [0, 0, 0]], {}, "in 3-D where the source mesh is in 2-D"),
        ([[5.0, 5], [6, 6]], {}, r"do not overlap: source 0..1 x 0..1, target 5..6 x 5..6"),
        ([[5.0, 5], [6, 6]], {"outside": "nan"}, "do not overlap"),
        ([[5.0, 5], [6, 6]], {"outside": "error"}, "do not overlap"),
        (
            [[0.5, 0.5], [1.2, 0.5]],
            {},
            r"node 1 at \(1.2, 0.5\) lies 0.2 outside .* 0.141 of its diagonal where max_di",
        ),
        ([[0.5, 0.5]], {"method": "cubic"}, "method: 'cubic' is not one of linear, nearest, idw, rbf"),
        ([[0.5, 0.5]], {"outside": "clip"}, "outside: 'clip' is not one of"),
        ([[0.5, 0.5]], {"dtype": "float16"}, "dtype: 'float16' is not one of"),
        ([[0.5, 0.5]], {"max_distance": np.nan}, "max_distance: nan is not"),
        ([[0.5, 0.5]], {"max_distance": -1}, "max_distance: -1 is not"),
    ],
)
def test_a_bad_pair_is_refused_in_one_line(targets: object, options: dict[str, Any], says: str) -> None:
    with pytest.raises(MeshError, match=says) as raised:
        build_operator(Mesh(*SQUARE), np.array(targets), **{"max_distance": 0.1, **options})
    assert "\n" not in str(raised.value)


def test_targets_in_a_hole_are_too_far_out_too() -> None:
    mesh = Mesh(*ring(40, 4, inner=0.5))
    with pytest.raises(MeshError, match=r"node 1 at \(0, 0\) lies 0.49"):
        build_operator(mesh, np.array([[0.7, 0.0], [0, 0]]), max_distance=0.1)
    with pytest.raises(MeshError, match="no target node lies in the source mesh"):
        build_operator(mesh, np.array([[0.0, 0.0]]), outside="nan", max_distance=0.1)
    assert build_operator(mesh, np.array([[0.0, 0]]), max_distance=np.inf).distance[0] > 0.49


def test_flat_targets_in_3d_meet_a_flat_mesh() -> None:
    operator = build_operator(Mesh(*SQUARE), np.array([[0.5, 0.4, 2], [0.1, 0.2, 2]]), max_distance=0)
    assert operator.notices == ("target: the third coordinate is 2 at all 2 nodes; dropped",)
    assert operator.valid.all()


@pytest.mark.parametrize(
    ("points", "method", "says"),
    [
        (
            np.stack([np.arange(30.0), 2 * np.arange(30.0)], axis=1),
            "linear",
            "30 points without cells that do not span",
        ),
        (np.zeros((1, 2)), "linear", "1 points without cells"),
        (
            np.stack(np.meshgrid(np.arange(40) * 1e-3, np.arange(3.0)), axis=2).reshape(-1, 2),
            "rbf",
            "do not span 2",
        ),
    ],
)
def test_points_in_a_row_are_refused_where_a_plane_is_needed(points: Reals, method: Any, says: str) -> None:
    with pytest.raises(MeshError, match=says):
        build_operator(Mesh(points), points[:1] + np.array([1e-3, 0]), method=method, max_distance=np.inf)


def test_values_of_another_mesh_are_refused() -> None:
    operator = build_operator(Mesh(*SQUARE), np.array([[0.5, 0.4]]), max_distance=0)
    for values in (np.zeros((1, 8, 1)), np.zeros((9, 1)), np.zeros((1, 9, 1), np.int64)):
        with pytest.raises(MeshError, match=r"where floating point \[time, 9 nodes, channel\] is needed"):
            operator.apply(values)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.floats(0, 0.08), st.sampled_from([1.0, 1e-3, 1e4])
)
def test_every_target_is_inside_or_at_its_distance(kind: str, seed: int, warp: float, size: float) -> None:
    """Interpolated coordinates are the target itself, or the boundary point at its distance."""
    points, cells = box(kind, 3, warp)
    targets = np.random.default_rng(seed).uniform(-0.2, 1.2, (60, points.shape[1])) * size
    operator = build_operator(Mesh(points * size, cells), targets, max_distance=1)
    feet = operator.matrix @ (points * size)
    np.testing.assert_allclose(np.linalg.norm(feet - targets, axis=1), operator.distance, atol=1e-12 * size)
    assert (operator.distance[operator.valid] == 0).all()
    assert (operator.distance[~operator.valid] > 0).all()
    assert operator.matrix.data.min() >= -1e-8


VTK_KINDS = {"triangle": 5, "quad": 9, "tetra": 10, "hexahedron": 12, "wedge": 13}


@pytest.mark.parametrize("kind", KINDS)
def test_vtk_samples_the_same_values(kind: str) -> None:
    """But near faces: VTK takes a neighbouring cell there, and continues its field beyond it."""
    pyvista = pytest.importorskip("pyvista", reason="needs pyvista, which the mesh extra brings")
    points, cells = box(kind, 4, warp=0.05)
    targets = inner_points(points, cells)

    def in_space(flat: Reals) -> Reals:
        return np.column_stack([flat, np.zeros((len(flat), 3 - flat.shape[1]))])

    grid = pyvista.UnstructuredGrid({VTK_KINDS[kind]: cells[kind]}, in_space(points))
    grid["f"] = wavy_field(points)
    sampled = pyvista.PolyData(in_space(targets)).sample(grid, tolerance=1e-10)
    assert np.asarray(sampled["vtkValidPointMask"]).all()
    found = applied(build_operator(Mesh(points, cells), targets, max_distance=0), wavy_field(points))
    assert np.quantile(np.abs(found - np.asarray(sampled["f"])), 0.94) < 1e-9


@pytest.mark.parametrize(
    ("kind", "mesh_name", "element_name"),
    [
        ("triangle", "MeshTri", "ElementTriP1"),
        ("quad", "MeshQuad", "ElementQuad1"),
        ("tetra", "MeshTet", "ElementTetP1"),
        ("hexahedron", "MeshHex", "ElementHex1"),
    ],
)
def test_scikit_fem_probes_the_same_matrix(kind: str, mesh_name: str, element_name: str) -> None:
    skfem = pytest.importorskip("skfem", reason="needs scikit-fem, which the test extra brings")
    axes = [np.linspace(0, 1, 5)] * ELEMENTS[kind].dim
    theirs = getattr(skfem, mesh_name).init_tensor(*axes)
    theirs = type(theirs)(warped(theirs.p.T, 0.03).T.copy(), theirs.t)
    reference = theirs.elem.refdom.p.T
    reference = theirs.elem.refdom.p.T
    corner_of = [int(((reference - corner) ** 2).sum(axis=1).argmin()) for corner in ELEMENTS[kind].corners]
    cells = {kind: theirs.t[corner_of].T.astype(np.int64)}
    points = theirs.p.T.copy()
    targets = inner_points(points, cells, 100)
    basis = skfem.CellBasis(theirs, getattr(skfem, element_name)())
    unknowns = np.empty(basis.N)
    unknowns[basis.nodal_dofs[0]] = wavy_field(points)
    expected = basis.probes(targets.T) @ unknowns
    found = applied(build_operator(Mesh(points, cells), targets, max_distance=0), wavy_field(points))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
