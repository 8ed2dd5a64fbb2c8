"""Interpolation operators kept in a folder, each as a store of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parbake.errors import ParbakeError, RecipeError
from parbake.producers.bake import bake
from parbake.producers.meshes.interpolate import Method, Operator, Outside, build_operator
from parbake.producers.meshes.series import MeshSeries
from parbake.store.cache import OPERATOR, store_name, used_now
from parbake.store.keys import JSON, Keys, digest
from parbake.store.layout import Field
from parbake.store.publish import baking_lock
from parbake.store.store import open_store


@dataclass(frozen=True)
class OperatorChoice:
    """Which operator: how values get from one mesh to another. See ``build_operator``."""

    method: Method
    outside: Outside
    max_distance: float


@dataclass(frozen=True, eq=False)
class OperatorProducer:
    """An operator as samples, one for each target node, its row padded to the longest.

    Fields: ``node`` (source node, -1 where the row has ended) and ``weight`` [entry], ``valid`` and
    ``distance`` as of Operator.
    """

    operator: Operator
    keys: Mapping[str, JSON]
    name: ClassVar[str] = OPERATOR
    version: ClassVar[int] = 1

    def __len__(self) -> int:
        return int(self.operator.matrix.shape[0])

    def schema(self) -> dict[str, Field]:
        matrix = self.operator.matrix
        width = max(1, int(np.diff(matrix.indptr).max(initial=0)))
        return {
            "node": Field((width,), "int32", ("entry",), description="source node, -1 beyond the last"),
            "weight": Field((width,), matrix.dtype, ("entry",), units="1", description="of the source node"),
            "valid": Field((), "bool", (), description="inside the source mesh"),
            "distance": Field((), "float64", (), description="to the source mesh, unit of the coordinates"),
        }

    def invalidation_keys(self) -> Mapping[str, JSON]:
        return self.keys

    @property
    def notices(self) -> tuple[str, ...]:
        return self.operator.notices

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        part = self.operator.matrix[start:stop]
        counts = np.diff(part.indptr)
        row = np.repeat(np.arange(stop - start), counts)
        entry = np.arange(part.nnz) - np.repeat(part.indptr[:-1], counts)
        shape = (stop - start, self.schema()["node"].shape[0])
        node, weight = np.full(shape, -1, np.int32), np.zeros(shape, part.dtype)
        node[row, entry], weight[row, entry] = part.indices, part.data
        found = {
            "node": node,
            "weight": weight,
            "valid": self.operator.valid[start:stop],
            "distance": self.operator.distance[start:stop],
        }
        return {name: found[name] for name in fields}


def operator_between(
    source: MeshSeries, target: MeshSeries, choice: OperatorChoice, folder: Path
) -> Operator:
    """The operator from one mesh to another: opened in ``folder`` where it is, else built and kept there.

    A folder that cannot be written to costs time only. Raises MeshError.
    """
    meshes = {"source": source.mesh_sha256(), "target": target.mesh_sha256()}
    keys: dict[str, JSON] = {**meshes, **vars(choice)}
    shared: dict[str, JSON] = {"producer": OPERATOR, "version": OperatorProducer.version, "keys": keys}
    path = folder / store_name(Keys(shared, {}))
    if (known := _opened(path, shared, source.nodes)) is not None:
        return known
    with _building(path):
        if (known := _opened(path, shared, source.nodes)) is not None:  # by whom this one waited for
            return known
        operator = build_operator(source.mesh, target.mesh.points, **vars(choice))
        with contextlib.suppress(ParbakeError, OSError):  # kept where it can be
            bake(OperatorProducer(operator, keys), path, progress=False, rebuild=True).close()
    return operator


def _opened(path: Path, shared: Mapping[str, JSON], nodes: int) -> Operator | None:
    """The operator at ``path`` if its shared keys are these, else None."""
    import scipy.sparse

    try:
        with open_store(path) as store:
            if digest(store.invalidation_keys.shared) != digest(shared):
                return None
            read = store.read(slice(None))
            notices = store.provenance.get("notices", ())
    except ParbakeError:
        return None
    used_now(path)
    held = read["node"] >= 0
    bounds = np.concatenate([[0], np.cumsum(held.sum(axis=1))])
    matrix = scipy.sparse.csr_array(
        (read["weight"][held], read["node"][held], bounds), shape=(len(held), nodes)
    )
    return Operator(matrix, read["valid"], read["distance"], tuple(notices))


@contextlib.contextmanager
def _building(path: Path) -> Iterator[None]:
    """One process at a time builds an operator; without a place to say so, each builds its own."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(RecipeError):
            stack.enter_context(baking_lock(path.with_name(f"{path.name}.building"), lambda _: None))
        yield
