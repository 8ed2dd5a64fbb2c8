"""examples/mesh_superresolution: what it promises, in runs of a few epochs."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from parbake.producers import MeshPair

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "mesh_superresolution"
MODULES = [file.stem for file in FOLDER.glob("*.py")]


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """The example's modules go by plain names that other examples use as well."""
    kept = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    threads = torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


@pytest.fixture(scope="module", autouse=True)
def modules() -> Iterator[dict[str, ModuleType]]:
    with importable():
        yield {name: importlib.import_module(name) for name in MODULES}


@pytest.fixture(scope="module")
def train(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["train"]


@pytest.fixture(autouse=True)
def unpainted(train: ModuleType, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A picture takes longer than many of the trainings here; one test looks at it."""
    if "painted" not in request.fixturenames:
        monkeypatch.setattr(train, "picture", lambda *_: None)


@pytest.fixture
def painted() -> None:
    """For tests that need the picture."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that most tests open what the first one baked."""
    return tmp_path_factory.mktemp("mesh_example_cache")


@pytest.fixture
def configured(tmp_path: Path, cache: Path) -> Any:
    """Writes a config.yaml, from settings that differ from a short run's."""

    def write(**changes: Any) -> Path:
        sections: dict[str, Any] = {
            "data": {"source_resolution": "coarse", "target_resolution": "medium", "cache_dir": str(cache)},
            "model": {"kind": "mlp", "width": 32, "layers": 2},
            "training": {"epochs": 12, "batch_size": 2, "learning_rate": 0.01},
            "out": str(tmp_path / "out"),
        }
        for key, values in changes.items():
            sections[key] = sections.get(key, {}) | values if isinstance(values, dict) else values
        file = tmp_path / "config.yaml"
        YAML().dump(sections, file)
        return file

    return write


def results(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((tmp_path / "out" / "results.json").read_text()))


# ---- runs


def test_first_run_bakes_second_opens_and_both_give_the_same(
    train: ModuleType, configured: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = configured(data={"cache_dir": str(tmp_path / "own")}, training={"epochs": 3})
    assert train.main([str(file)]) == 0
    first, said = results(tmp_path), capsys.readouterr().out
    stores = {path: path.stat().st_mtime_ns for path in (tmp_path / "own").iterdir()}
    assert first["baked"]
    assert "baked in" in said
    assert "generated flow" in said

    assert train.main([str(file)]) == 0
    second, said = results(tmp_path), capsys.readouterr().out
    assert not second["baked"]
    assert "opened in" in said
    assert "baking" not in said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "own").iterdir()} == stores
    for same in ("relative_l2_error", "epochs", "best_epoch"):
        assert first[same] == second[same]


@pytest.mark.parametrize(("kind", "less"), [("mlp", 0.25), ("message_passing", 0.2)])
def test_beats_interpolation_on_steps_it_never_saw(
    train: ModuleType, configured: Any, tmp_path: Path, kind: str, less: float
) -> None:
    assert train.main([str(configured(model={"kind": kind, "width": 24}, training={"epochs": 8}))]) == 0
    found = results(tmp_path)
    assert found["less_than_interpolation"] > less
    errors = {name: values[-1] for name, values in found["relative_l2_error"].items()}
    assert errors[kind] < errors["interpolation + mean residual"] < errors["interpolation"]
    assert min(found["held_out_times_s"]) == pytest.approx(30 / 40)


def test_picture_is_painted(train: ModuleType, configured: Any, tmp_path: Path, painted: None) -> None:
    assert train.main([str(configured(training={"epochs": 1}))]) == 0
    assert (tmp_path / "out" / "result.png").read_bytes().startswith(b"\x89PNG")


def test_row_of_interpolation_is_what_numpy_finds(
    train: ModuleType, configured: Any, modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    assert train.main([str(configured(training={"epochs": 1}))]) == 0
    coarse, fine = (modules["flow"].generated(name) for name in ("coarse", "medium"))
    pair = MeshPair(source=coarse, target=fine)
    truth = fine.read(range(40))
    given = pair.produce(30, 40, ("coarse_interp",))["coarse_interp"]
    rms = np.sqrt(((given - truth[30:]).astype(np.float64) ** 2).mean(axis=(0, 1)))
    wanted = rms / truth.astype(np.float64).std(axis=(0, 1))
    found = results(tmp_path)["relative_l2_error"]["interpolation"]
    np.testing.assert_allclose(found[:-1], wanted, rtol=1e-4)
    assert found[-1] == pytest.approx(float(np.sqrt((wanted**2).mean())), rel=1e-4)


def test_what_is_held_out_never_reaches_the_network(
    train: ModuleType, configured: Any, modules: dict[str, ModuleType], tmp_path: Path, cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = configured(training={"epochs": 2, "time_shift": 15})
    assert train.main([str(file)]) == 0
    network = torch.load(tmp_path / "out" / "model.pt", weights_only=True)["network"]
    epochs = results(tmp_path)["epochs"]
    flow = modules["flow"]
    true_state = flow._state
    monkeypatch.setattr(
        flow, "_state", lambda points, time_s, h: true_state(points, time_s, h) * (1 + 9 * (time_s > 0.74))
    )
    assert train.main([str(file)]) == 0
    assert results(tmp_path)["baked"]  # the content is another, so the store is
    assert results(tmp_path)["epochs"] == epochs
    again = torch.load(tmp_path / "out" / "model.pt", weights_only=True)["network"]
    assert all(torch.equal(network[name], again[name]) for name in network)


def test_without_cache_the_numbers_are_the_same(train: ModuleType, configured: Any, tmp_path: Path) -> None:
    errors = []
    for use_cache in (True, False):
        assert train.main([str(configured(data={"use_cache": use_cache}, training={"epochs": 2}))]) == 0
        errors.append(results(tmp_path)["relative_l2_error"]["mlp"])
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-3)


def test_the_best_network_at_validation_is_kept(
    train: ModuleType, configured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(train, "validation_loss", lambda *_: next(losses))
    assert train.main([str(configured(training={"epochs": 3}))]) == 0
    assert results(tmp_path)["best_epoch"] == 2
    kept = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert (kept["epoch"], kept["validation"]) == (2, 1.0)


@pytest.mark.parametrize("kind", ["mlp", "message_passing"])
def test_real_flow_is_mended_where_coarse_and_fine_keep_in_step(
    train: ModuleType, configured: Any, tmp_path: Path, kind: str
) -> None:
    meshes = DATA / "cylinder"
    if not meshes.is_dir():
        pytest.skip("needs the real flow past a cylinder, which is not part of the repository")
    data = {"dir": str(meshes), "source_resolution": "coarse", "target_resolution": "medium"}
    training = {"epochs": 6, "time_shift": 5}
    assert train.main([str(configured(data=data, training=training, model={"kind": kind}))]) == 0
    assert results(tmp_path)["less_than_interpolation"] > 0.02


# ---- the networks


@pytest.mark.parametrize("kind", ["mlp", "message_passing"])
def test_an_untrained_network_changes_nothing(
    train: ModuleType, modules: dict[str, ModuleType], kind: str
) -> None:
    data = modules["settings"].Data("coarse", "medium")
    config = modules["settings"].Config(data, modules["settings"].Model(kind))
    pair = train.pair_of(data)
    values = torch.randn(2, pair.target_series.nodes, 3)
    assert not train.network_for(pair, config)(values).any()


def test_edges_are_those_of_the_cells(modules: dict[str, ModuleType]) -> None:
    cells = {
        "triangle": np.array([[0, 1, 2]]),
        "quad": np.array([[1, 3, 4, 2]]),
        "hexahedron": np.arange(5, 13)[None],
    }
    edges = {tuple(edge) for edge in modules["models"].edges_of(cells).T.tolist()}
    one_way = {(0, 1), (1, 2), (0, 2), (1, 3), (3, 4), (2, 4)}
    one_way |= {(5, 6), (6, 7), (7, 8), (5, 8), (9, 10), (10, 11), (11, 12), (9, 12)}
    one_way |= {(5, 9), (6, 10), (7, 11), (8, 12)}
    assert edges == one_way | {(b, a) for a, b in one_way}


def test_a_message_reaches_as_far_as_there_are_layers(modules: dict[str, ModuleType]) -> None:
    flow, models = modules["flow"], modules["models"]
    mesh = flow.generated("coarse").mesh
    torch.manual_seed(0)
    network = models.MessagePassing(mesh.points, mesh.cells, 3, width=8, layers=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for layer in network.layers:
        torch.nn.init.zeros_(layer.overall.weight)  # else the mean reaches everywhere
    values = torch.randn(1, len(mesh.points), 3)
    changed = values.clone()
    changed[0, 100] += 1
    with torch.no_grad():
        differs = (network(values) - network(changed))[0].abs().sum(dim=1).numpy() > 0
    source, target = models.edges_of(mesh.cells)
    graph = coo_array((np.ones(len(source)), (source, target)))
    np.testing.assert_array_equal(differs, shortest_path(graph, unweighted=True, indices=100) <= 2)


# ---- the parts


@given(steps=st.integers(10, 500))
@settings(max_examples=50, deadline=None)
def test_stretches_cover_all_steps_in_order(steps: int) -> None:
    parts = sys.modules["train"].Stretches.of(steps)
    assert [*parts.train, *parts.validation, *parts.test] == list(range(steps))
    assert min(map(len, (parts.train, parts.validation, parts.test))) > 0


def test_generated_meshes_are_four_sizes_with_a_hole(modules: dict[str, ModuleType]) -> None:
    flow = modules["flow"]
    series = [flow.generated(name) for name in flow.resolutions()[:3]]
    nodes = [one.nodes for one in series]
    assert nodes == sorted(set(nodes))
    for one in series:
        middles = one.mesh.points[one.mesh.cells["triangle"]].mean(axis=1)
        assert np.linalg.norm(middles - [0.8, 0.8], axis=1).min() > 0.18
        assert set(one.mesh.cells["triangle"].ravel()) == set(range(one.nodes))


# ---- mistakes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data": {"sorce_resolution": "coarse"}},
            "data.sorce_resolution: no such key; did you mean",
        ),
        (  # misspelt, and so missing
            {"data": {"sorce_resolution": "coarse", "source_resolution": None}},
            "data.sorce_resolution: no such key; did you mean",
        ),
        ({"trainning": {"epochs": 3}}, "trainning: no such key; did you mean training?"),
        ({"model": {"kind": "transformer"}}, "model.kind: input should be 'mlp' or 'message_passing'"),
        ({"training": {"epochs": 0}}, "training.epochs: input should be greater than or equal to 1, not 0"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate: input should be a valid number"),
        ({"data": {"source_resolution": "corse"}}, "no resolution corse in the generated flow; there are"),
        ({"data": {"source_resolution": "fine"}}, "the target must be the finer one"),
        ({"data": {"target_resolution": "coarse"}}, "the target must be the finer one"),
        ({"data": {"dir": "nowhere"}}, "data.dir: no folder nowhere"),
    ],
)
def test_a_mistake_in_the_config_is_one_line(
    train: ModuleType, configured: Any, capsys: pytest.CaptureFixture[str], changes: Any, said: str
) -> None:
    assert train.main([str(configured(**changes))]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_missing_or_broken_config_is_one_line(
    train: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.yaml").write_text("data: [1\n")
    (tmp_path / "empty.yaml").write_text("")
    for name in ("absent.yaml", "broken.yaml", "empty.yaml"):
        assert train.main([str(tmp_path / name)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert name in line


def test_folders_without_fitting_meshes_are_told_in_one_line(
    train: ModuleType, configured: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meshes = tmp_path / "sim"
    meshes.mkdir()
    file = configured(data={"dir": str(meshes)})
    assert train.main([str(file)]) == 2
    assert capsys.readouterr().err == f"error: data.dir: no meshes in {meshes}\n"
    (meshes / "fine.npz").write_bytes(b"")
    assert train.main([str(file)]) == 2
    assert f"no resolution coarse in {meshes}; there are fine" in capsys.readouterr().err
    for name in ("coarse.npz", "medium.npz"):
        (meshes / name).write_bytes(b"no zip")
    assert train.main([str(file)]) == 1  # parbake's own words about the file
    [line] = capsys.readouterr().err.splitlines()
    assert "coarse.npz" in line


def test_config_yaml_is_the_defaults_written_out(modules: dict[str, ModuleType]) -> None:
    read = modules["settings"].read_config(FOLDER / "config.yaml")
    short = modules["settings"].Config(modules["settings"].Data("coarse", "fine"))
    assert dataclasses.asdict(read) == dataclasses.asdict(short)
