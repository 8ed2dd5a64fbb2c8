"""Interpolation between meshes: speed beside SciPy's, and errors beside the analytic field.

``--data FOLDER`` holds coarse.npz, medium.npz, fine.npz, finest.npz: points, cells, fields [time, node,
channel]. Ratios are speeds, ours over SciPy's, for 1,000 steps of four float32 fields; SciPy is timed on
some steps and scaled up, since it takes hours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from common import seconds, show
from numpy.typing import NDArray

from parbake.producers.meshes.geometry import Mesh
from parbake.producers.meshes.interpolate import Method, Operator, build_operator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from grids import box, box_cells, ring

STEPS, BLOCK, CHANNELS = 1_000, 40, 4
Field = Callable[[NDArray[Any]], NDArray[Any]]
Pair = tuple[Mesh, NDArray[Any], NDArray[Any]]  # source, target points, values [BLOCK, node, channel]


def ours(pair: Pair, dtype: Literal["float32", "float64"]) -> tuple[float, float]:
    """Seconds of building the operator and of applying it to all steps, BLOCK at a time."""
    source, targets, values = pair
    kept: list[Operator] = []
    build = min(
        seconds(lambda: kept.append(build_operator(source, targets, max_distance=0.05, dtype=dtype)))
        for _ in range(3)
    )
    apply = min(seconds(lambda: kept[0].apply(values)) for _ in range(STEPS // BLOCK // 2))
    return build, apply * STEPS / BLOCK


def per_field_and_step(pair: Pair) -> float:
    """Seconds of SciPy where nothing is shared, for all steps; from three fields."""
    from scipy.interpolate import LinearNDInterpolator

    source, targets, values = pair
    times = [
        seconds(lambda c=c: LinearNDInterpolator(source.points, values[0, :, c])(targets)) for c in range(3)
    ]
    return min(times) * CHANNELS * STEPS


def shared_triangulation(pair: Pair) -> float:
    """Seconds of SciPy with one triangulation, and one call a step for all fields; from eight steps."""
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import Delaunay

    source, targets, values = pair
    shared: list[Any] = []
    made = seconds(lambda: shared.append(Delaunay(source.points)))
    first = seconds(
        lambda: LinearNDInterpolator(shared[0], values[0])(targets)
    )  # once: barycentric transforms
    steps = [seconds(lambda t=t: LinearNDInterpolator(shared[0], values[t])(targets)) for t in range(1, 9)]
    return made + first + min(steps) * (STEPS - 1)


def speed(name: str, pairs: list[Pair]) -> None:
    """Ratios of the sums over all pairs."""
    alone = sum(per_field_and_step(pair) for pair in pairs)
    shared = sum(shared_triangulation(pair) for pair in pairs)
    print(f"{name}: SciPy {alone:,.0f} s built per field and step, {shared:.1f} s on a shared triangulation")
    for dtype in ("float32", "float64"):
        built, applied = np.sum([ours(pair, dtype) for pair in pairs], axis=0)
        print(f"  {dtype}: operators {built:.3f} s, {STEPS:,} steps {applied:.3f} s")
        show("  over LinearNDInterpolator built per field and step", alone / (built + applied), "aim: 200")
        show("  over one call a step on a shared triangulation", shared / (built + applied), "aim: 15")


def cylinder_pairs(folder: Path) -> list[Pair]:
    loaded = [dict(np.load(folder / f"{name}.npz")) for name in ("coarse", "medium", "fine", "finest")]
    return [
        (Mesh(one["points"], {"triangle": one["cells"]}), other["points"], one["fields"][:BLOCK])
        for one, other in combinations(loaded, 2)
    ]


def tetra_pair() -> Pair:
    """20,250 to 60,000 nodes, both ordered as a grid: SciPy's search walks from target to target."""
    rng = np.random.default_rng(0)
    steps = (26, 29, 24)
    mesh = Mesh(_shaken(steps, rng), {"tetra": box_cells("tetra", steps)})
    values = rng.random((BLOCK, len(mesh.points), CHANNELS), np.float32)
    return mesh, _shaken((39, 49, 29), rng), values


def _shaken(steps: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """A grid's nodes in the unit cube, the inner ones moved: Delaunay has no one answer on a regular grid."""
    axes = np.meshgrid(*[np.linspace(0, 1, step + 1) for step in steps], indexing="ij")
    points = np.stack([axis.ravel() for axis in axes], axis=1)
    inner = ((points > 0) & (points < 1)).all(axis=1)
    points[inner] += rng.uniform(-0.004, 0.004, (inner.sum(), 3))
    return points


# ---- accuracy


def wave(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sin(4 * points[:, 0]) * np.cos(5 * points[:, 1]))


def swirl(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Potential flow around a cylinder of radius 0.3: varies most along the hole's edge."""
    x, y = points.T
    return np.asarray(y * (1 - 0.09 / (x * x + y * y)) + 0.5 * np.log(np.hypot(x, y)))


def rms(operator: Operator, source: NDArray[Any], targets: NDArray[Any], field: Field) -> list[float]:
    """Root mean square error of the targets inside, and of those outside."""
    error = operator.apply(field(source)[None, :, None])[0, :, 0] - field(targets)
    return [
        float(np.sqrt(np.mean(error[part] ** 2))) for part in (operator.valid, ~operator.valid) if part.any()
    ]


def on_ring() -> None:
    rng = np.random.default_rng(0)
    angle, radius = rng.uniform(0, 2 * np.pi, 4000), np.sqrt(rng.uniform(0.3**2, 1, 4000))
    directions = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    targets = np.concatenate(
        [directions * radius[:, None], directions]
    )  # these on the arc, outside the polygon
    points, cells = ring(48, 8)
    print(
        "\nring around a hole, 48 x 8 triangles: RMS error inside, on the arc projected, on the arc nearest"
    )
    for name, mesh in (("cells", Mesh(points, cells)), ("cloud", Mesh(points))):
        for method in get_args(Method):
            errors = [
                rms(
                    build_operator(mesh, targets, method=method, outside=way, max_distance=0.1),
                    points,
                    targets,
                    swirl,
                )
                for way in ("project", "nearest")
            ]
            print(f"  {name:6} {method:8} {errors[0][0]:.1e} {errors[0][1]:.1e} {errors[1][1]:.1e}")


def sheared_wave(back: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """As smooth in units of cells as the wave on the square that ``back`` maps the points to."""
    return wave(points @ back)


def on_stretched() -> None:
    """24 x 24 cells of 5:1; sheared ones are not those that Delaunay would make."""
    rng = np.random.default_rng(0)
    print("\n24 x 24 cells of 5:1: RMS error")
    for kind in ("triangle", "quad"):
        points, cells = box(kind, 24)
        targets = rng.random((8000, 2))
        for shear in (0.0, 1.0):
            shape = np.array([[1, 0], [shear, 0.2]])
            at, to = points @ shape, targets @ shape
            field = partial(sheared_wave, np.linalg.inv(shape))
            for name, mesh in (("cells", Mesh(at, cells)), ("cloud", Mesh(at))):
                for method in get_args(Method):
                    operator = build_operator(mesh, to, method=method, max_distance=0.1)
                    error = rms(operator, at, to, field)[0]
                    print(f"  {kind:8} shear {shear:.0f} {name:6} {method:8} {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder of the cylinder's meshes")
    folder = parser.parse_args().data
    on_ring()
    on_stretched()
    if folder is not None:
        speed("cylinder, six pairs", cylinder_pairs(folder))
    speed("tetrahedra, 20,250 to 60,000 nodes", [tetra_pair()])


if __name__ == "__main__":
    main()
