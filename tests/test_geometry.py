"""Meshes: what is let in, what is refused, and what the cells' formulas promise."""

from __future__ import annotations

import numpy as np
import pytest
from grids import KINDS, box, ring
from hypothesis import given, settings
from hypothesis import strategies as st

from parbake.errors import MeshError
from parbake.producers.meshes.boxes import box_tree, near
from parbake.producers.meshes.elements import ELEMENTS, invert, jacobians
from parbake.producers.meshes.geometry import CORNERS, Mesh, boundary_faces

SQUARE = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
CUBE = np.array([[x, y, z] for z in (0.0, 1) for x, y in SQUARE])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_cell_is_taken_in_either_orientation(kind: str) -> None:
    points, cells = box(kind, 3, warp=0.05)
    assert Mesh(points, cells).notices == ()
    mirrored = points * [-1, *[1] * (points.shape[1] - 1)]
    assert Mesh(mirrored, cells).dim == points.shape[1]


def test_triangles_in_both_orientations_at_once_are_no_fault() -> None:
    points, cells = box("triangle", 4)
    cells["triangle"][::3] = cells["triangle"][::3, ::-1]
    assert Mesh(points, cells).cells["triangle"].shape == (32, 3)


def test_lists_and_float32_become_the_declared_arrays() -> None:
    mesh = Mesh(
        SQUARE.astype(np.float32), {"quad": np.array([[0, 1, 2, 3]], np.uint16), "triangle": np.empty((0, 3))}
    )
    assert mesh.points.dtype == np.float64
    assert {kind: array.dtype for kind, array in mesh.cells.items()} == {"quad": np.dtype(np.int64)}
    assert mesh.diagonal == np.sqrt(2)


def test_a_flat_third_coordinate_is_dropped_with_a_notice() -> None:
    points, cells = box("triangle", 3)
    for given_cells in (cells, {}):
        mesh = Mesh(np.column_stack([points, np.full(len(points), 0.25)]), given_cells)
        assert mesh.dim == 2
        np.testing.assert_array_equal(mesh.points, points)
        assert mesh.notices == ("the third coordinate is 0.25 at all 16 nodes; dropped",)


def test_surfaces_beside_solid_cells_are_left_out_with_a_notice() -> None:
    mesh = Mesh(CUBE, {"hexahedron": np.arange(8)[None], "quad": np.array([[0, 1, 2, 3]])})
    assert set(mesh.cells) == {"hexahedron"}
    assert mesh.notices == ("1 quad cells beside three-dimensional ones (surfaces); left out",)


TRIANGLE = {"triangle": np.array([[0, 1, 2], [0, 2, 3]])}
TETRA = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.2, 0.2]])


@pytest.mark.parametrize(
    ("points", "cells", "says"),
    [
        (np.where(SQUARE == [1, 1], np.nan, SQUARE), TRIANGLE, "3 of 4 nodes have NaN.* first is node 1"),
        (np.array([[0, 0], [1, 0], [np.inf, 1], [0, 1]]), {}, "1 of 4 nodes have NaN or infinite"),
        (np.zeros((0, 2)), {}, r"shape \(0, 2\)"),
        (np.zeros((5, 4)), {}, r"shape \(5, 4\)"),
        (["a"], {}, "not an array of numbers"),
        (SQUARE, {"triangle": np.array([[0, 1, 4]])}, "node 4 where nodes are 0 to 3"),
        (SQUARE, {"triangle": np.array([[0, 1, -1]])}, "node -1 where"),
        (SQUARE, {"triangle": np.array([[0.0, 1, 2]])}, r"float64 \(1, 3\)"),
        (SQUARE, {"triangle": np.array([[0, 1, 2, 3]])}, r"give integers \[cell, 3\]"),
        (SQUARE, {"pyramid": np.array([[0, 1, 2, 3, 0]])}, "'pyramid' is not supported; triangle, quad"),
        (
            SQUARE,
            {"triangle": np.array([[0, 1, 2], [0, 3, 3]])},
            r"1 of 2 triangle cells are degenerate.*0, 3, 3",
        ),
        (SQUARE * [1, 1e-13], TRIANGLE, "degenerate"),
        (SQUARE, {"quad": np.array([[0, 2, 1, 3]])}, "1 of 1 quad cells are folded"),
        (
            SQUARE * [1, 1] - [[0, 0], [0, 0], [0.7, 0.7], [0, 0]],
            {"quad": np.array([[0, 1, 2, 3]])},
            "folded",
        ),
        (CUBE, {"hexahedron": np.array([[0, 1, 2, 3, 6, 7, 4, 5]])}, "degenerate|folded"),
        (CUBE, {"wedge": np.array([[0, 1, 2, 4, 6, 5]])}, "degenerate|folded"),
        (SQUARE, {"triangle": np.array([[0, 1, 2], [0, 1, 3]])}, "same side of the edge they share.*0, 1"),
        (SQUARE, {"quad": np.array([[0, 1, 2, 3]] * 2)}, "same side of the edge"),
        (TETRA, {"tetra": np.array([[0, 1, 2, 3], [0, 1, 2, 4]])}, "same side of the face they share"),
        (CUBE, {"quad": np.array([[0, 1, 2, 3], [4, 5, 6, 7]])}, "do not lie flat .they span 1 x 1 x 1"),
        (SQUARE, {"tetra": np.array([[0, 1, 2, 3]])}, "tetra cells on points in 2-D"),
    ],
)
def test_a_bad_mesh_is_refused_in_one_line(points: object, cells: object, says: str) -> None:
    with pytest.raises(MeshError, match=says) as raised:
        Mesh(points, cells)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_an_inverted_cell_among_good_ones_is_seen() -> None:
    points, cells = box("triangle", 6)
    points[24] += [0.3, 0.1]  # an inner node, across the edges opposite
    with pytest.raises(MeshError, match="one of them is inverted"):
        Mesh(points, cells)
    points, cells = box("tetra", 4)
    points[62] += [0.4, 0, 0]
    with pytest.raises(MeshError, match="one of them is inverted"):
        Mesh(points, cells)


def test_the_boundary_is_the_faces_of_one_cell() -> None:
    counts = {kind: {size: len(f) for size, f in boundary_faces(*box(kind, 3)).items()} for kind in KINDS}
    assert counts == {
        "triangle": {2: 12},
        "quad": {2: 12},
        "tetra": {3: 108},
        "hexahedron": {4: 54},
        "wedge": {3: 36, 4: 36},
    }
    points, cells = ring(16, 3)
    rim = np.unique(boundary_faces(points, cells)[2])
    radii = np.linalg.norm(points[rim], axis=1).round(12)
    assert np.unique(radii).tolist() == [0.3, 1.0]  # a hole has a boundary, a closed seam has none


def test_faces_of_many_nodes_are_paired_as_those_of_few() -> None:
    points, cells = box("hexahedron", 3)
    high = {
        kind: nodes + 2**17 for kind, nodes in cells.items()
    }  # four numbers below 2**17 no longer fit one
    shifted = np.concatenate([np.zeros((2**17, 3)), points])
    np.testing.assert_array_equal(boundary_faces(shifted, high)[4], boundary_faces(points, cells)[4] + 2**17)


@pytest.mark.parametrize("kind", KINDS)
def test_shape_functions_are_a_basis_and_their_slopes_its_derivatives(kind: str) -> None:
    element = ELEMENTS[kind]
    assert len(element.corners) == CORNERS[kind]
    np.testing.assert_array_equal(element.values(element.corners), np.eye(CORNERS[kind]))
    local = np.random.default_rng(0).random((20, element.dim)) / element.dim
    np.testing.assert_allclose(element.values(local).sum(axis=1), 1)
    np.testing.assert_allclose(element.values(local) @ element.corners, local)
    for axis, step in enumerate(1e-6 * np.eye(element.dim)):
        numeric = (element.values(local + step) - element.values(local - step)) / 2e-6
        np.testing.assert_allclose(element.slopes(local)[:, :, axis], numeric, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_faces_are_listed_counter_clockwise_from_outside(kind: str) -> None:
    element = ELEMENTS[kind]
    for face in element.faces:
        corners = element.corners[list(face)]
        edges = np.diff(corners[:3], axis=0)
        normal = np.cross(*edges) if element.dim == 3 else np.array([edges[0, 1], -edges[0, 0]])
        assert normal @ (corners.mean(axis=0) - element.corners.mean(axis=0)) > 0


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1.0, 1e-2, 1e-5]),
    st.floats(-100, 100),
)
def test_a_point_made_in_a_cell_is_found_at_its_local_coordinates(
    kind: str, seed: int, thin: float, away: float
) -> None:
    """In any cell that a mesh admits, however thin and wherever it lies."""
    element, rng = ELEMENTS[kind], np.random.default_rng(seed)
    corners = element.corners + rng.uniform(-0.3, 0.3, (64, *element.corners.shape))
    jacobian = jacobians(element, corners)
    corners = corners[(jacobian > 0.02).all(axis=1)]
    turn = np.linalg.qr(rng.normal(size=(element.dim, element.dim)))[
        0
    ]  # so that no axis is along the thin side
    corners = (corners * [thin, *[1] * (element.dim - 1)]) @ turn + away
    local = rng.dirichlet(np.ones(element.dim + 1), len(corners))[:, 1:]
    points = np.einsum("nc,ncd->nd", element.values(local), corners)
    found = invert(element, corners, points)
    np.testing.assert_allclose(found, local, atol=1e-13 * (1 + abs(away)) / thin)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200), st.integers(2, 3), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.05, 0.5, 3.0])
)
def test_the_tree_finds_every_box_within_the_radius(count: int, dim: int, seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    low = rng.random((count, dim)) ** 3  # crowded in one corner
    high = low + rng.random((count, dim)) * rng.choice([1e-3, 0.3], (count, 1))
    points = rng.uniform(-0.2, 1.5, (40, dim))
    radii = radius * rng.random(40)
    found = [
        pair
        for point, box in near(box_tree(low, high), points, radii)
        for pair in zip(point, box, strict=True)
    ]
    apart = np.maximum(np.maximum(low - points[:, None], points[:, None] - high), 0)
    expected = np.argwhere((apart**2).sum(axis=2) <= radii[:, None] ** 2)
    assert found == [tuple(pair) for pair in expected.tolist()]


def test_batches_of_too_many_pairs_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parbake.producers.meshes.boxes._PAIRS_MAX", 1000)
    rng = np.random.default_rng(0)
    low, points = rng.random((300, 2)), rng.random((50, 2))
    batches = list(near(box_tree(low, low + 0.1), points, np.full(50, 2.0)))
    assert len(batches) > 4
    assert [pair for batch in batches for pair in zip(*batch, strict=True)] == [
        (point, box) for point in range(50) for box in range(300)
    ]
