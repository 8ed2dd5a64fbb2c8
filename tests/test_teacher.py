"""Any network as a producer: what it is given, what of its outputs is stored, what is refused."""

from __future__ import annotations

import functools
import gc
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import parbake
from parbake import Field, ProducerError, RecipeError, TeacherFileError
from parbake.cli import main
from parbake.cli_output import show_bake
from parbake.errors import KeysError
from parbake.producers import Teacher
from parbake.producers.networks.models import network_in_process
from parbake.store.keys import compare, producer_keys
from parbake.store.store import Store


class Vision(torch.nn.Module):
    """Logits [batch, 10] and an embedding [batch, 8] of images [batch, 3, height, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.dropout = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = torch.relu(self.features(image)).mean((2, 3))
        return self.head(self.dropout(embedding)), embedding


class Images(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Images and labels; keeps an open file from the first item on, as many datasets do."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.images = np.random.default_rng(0).normal(size=(count, 3, 8, 8)).astype(np.float32)
        self.broken = broken
        self.file: Any = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.file is None:
            self.file = threading.Lock()  # as good as a file: nothing can see into it
        if index in self.broken:
            raise OSError(f"image {index} is truncated")
        return torch.from_numpy(self.images[index]), index % 10


class Jittered:
    """A dataset with a random transform."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return index + torch.rand(4)


class Sequences(torch.nn.Module):
    """A transformer over padded sequences [batch, time, 4] with their lengths."""

    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor, length: torch.Tensor) -> dict[str, torch.Tensor]:
        padding = torch.arange(tokens.shape[1])[None] >= length[:, None]
        states = self.encoder(tokens, src_key_padding_mask=padding).masked_fill(padding[..., None], 0)
        return {"states": states, "pooled": states.sum(1) / length[:, None]}


def sequences(index: int, rng: np.random.Generator) -> dict[str, Any]:
    length = int(rng.integers(1, 7))
    tokens = np.zeros((6, 4), np.float32)
    tokens[:length] = rng.normal(size=(length, 4))
    return {"tokens": tokens, "length": length}


def top3(output: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    values, classes = output[0].topk(3, dim=1)
    return {"top": values, "classes": classes, "embedding": output[1]}


def made(kind: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A network with the same weights at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


VISION = functools.partial(Teacher, input_names=("image", "label"), args=("image",))


def columns(store: Store) -> dict[str, np.ndarray[Any, Any]]:
    return {name: store[name][:] for name in store}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, importable, with this module's networks under the name my_nets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = Path(__file__).read_text().split("VISION = ")[0].split("from click")[0]
    body = Path(__file__).read_text().split("\nclass Vision", 1)[1].split("\nVISION =")[0]
    factory = "\n\ndef images():\n    return Images(20)\n\n\ndef vision():\n    return made(Vision)\n"
    (tmp_path / "my_nets.py").write_text(source + "\nclass Vision" + body + factory)
    yield tmp_path
    sys.modules.pop("my_nets", None)


# ---- what is stored


def test_top_k_logits_and_an_embedding_of_images_are_two_kinds_of_fields(tmp_path: Path) -> None:
    network, images = made(Vision), Images(70)
    teacher = VISION(network, images, keep=("label",), post=top3, store_dtype={"embedding": "float16"})
    with parbake.bake(teacher, tmp_path / "images.zarr", batch_size=32, progress=False) as store:
        found = columns(store)
    with torch.inference_mode():
        batches = [top3(network(torch.from_numpy(images.images[i : i + 32]))) for i in (0, 32, 64)]
    for name, dtype in (("top", "f4"), ("classes", "i8"), ("embedding", "f2")):
        expected = torch.cat([batch[name] for batch in batches]).numpy().astype(dtype)
        assert found[name].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(found[name], expected)
    np.testing.assert_array_equal(found["label"], np.arange(70) % 10)


def test_a_transformer_over_padded_sequences_with_their_lengths(tmp_path: Path) -> None:
    network = made(Sequences)
    teacher = Teacher(network, sequences, num_samples=40, keep=("tokens", "length"), seed=3)
    with parbake.bake(teacher, tmp_path / "sequences.zarr", batch_size=16, progress=False) as store:
        found = columns(store)
    assert set(found) == {"tokens", "length", "states", "pooled"}
    assert len(set(found["length"])) > 3
    with torch.inference_mode():
        tokens, length = (torch.from_numpy(found[name]) for name in ("tokens", "length"))
        alone = network(tokens[17:18, : length[17]], length[17:18])  # without its padding
    np.testing.assert_allclose(found["pooled"][17], alone["pooled"][0], atol=1e-6)
    np.testing.assert_allclose(found["states"][17, : length[17]], alone["states"][0], atol=1e-6)
    assert not found["states"][17, length[17] :].any()


def test_drawn_inputs_depend_on_seed_and_sample_alone() -> None:
    def produced(seed: int, start: int, stop: int) -> np.ndarray[Any, Any]:
        teacher = Teacher(torch.nn.Identity().eval(), drawn, num_samples=50, seed=seed)
        return np.asarray(teacher.produce(start, stop, ("y",))["y"])

    def drawn(index: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        return rng.normal(size=300)

    whole = produced(1, 0, 50)
    np.testing.assert_array_equal(produced(1, 31, 34), whole[31:34])
    assert len(np.unique(whole)) == whole.size  # no two samples share a stretch of the stream
    assert not np.isin(produced(2, 0, 50), whole).any()


def test_a_fresh_seed_is_drawn_once_and_kept(tmp_path: Path) -> None:
    teacher = Teacher(made(Sequences), sequences, num_samples=10, seed="fresh")
    with parbake.bake(teacher, tmp_path / "s.zarr", progress=False) as store:
        first, seed = store["pooled"][:], store.provenance["seed_drawn"]
        assert store.freshness(teacher)
    more = Teacher(made(Sequences), sequences, num_samples=20, seed="fresh")
    with parbake.bake(more, tmp_path / "s.zarr", progress=False) as store:
        assert store.provenance["seed_drawn"] == seed
        np.testing.assert_allclose(store["pooled"][:10], first, atol=1e-6)


@pytest.mark.parametrize(
    ("output", "outputs", "names"),
    [
        (lambda x: x, (), {"y"}),
        (lambda x: x, ("half",), {"half"}),
        (lambda x: (x, x[:, 0]), (), {"y0", "y1"}),
        (lambda x: (x, x[:, 0]), ("a", "b"), {"a", "b"}),
        (lambda x: {"p": x, "q": x}, ("q",), {"q"}),
        (lambda x: x.numpy(), (), {"y"}),
        (lambda x: list(x), (), {"y"}),
    ],
)
def test_outputs_of_any_form_are_named(output: Any, outputs: tuple[str, ...], names: set[str]) -> None:
    teacher = Teacher(output, np.ones((4, 3), np.float32), outputs=outputs)
    assert set(teacher.schema()) == names
    out = teacher.produce(1, 4, tuple(names))
    assert all(np.asarray(value).shape[0] == 3 for value in out.values())


def test_declared_fields_bring_dims_and_units(tmp_path: Path) -> None:
    fields = {"y": Field((3,), "float64", ("axis",), units="m")}
    teacher = Teacher(torch.nn.Identity().eval(), np.ones((4, 3), np.float32), fields=fields)
    with parbake.bake(teacher, tmp_path / "s.zarr", progress=False) as store:
        assert (store.fields["y"].dims, store.fields["y"].units) == (("axis",), "m")
        assert store["y"].dtype == np.float64


def test_a_stateful_network_is_reset_before_each_batch() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x * self.calls

    network = Counting().eval()
    ones = np.ones((6, 2), np.float32)

    def produced(**options: Any) -> list[float]:
        teacher = Teacher(network, ones, **options)
        return [float(teacher.produce(i, i + 2, ("y",))["y"][0, 0]) for i in (0, 2, 4)]

    assert produced(reset=lambda module: setattr(module, "calls", 0)) == [1, 1, 1]
    with pytest.raises(ProducerError, match=r"the second time: .* reset= should clear"):
        produced()
    assert network.calls == 0  # the user's own is left as it was


def test_randomness_beside_the_index_is_refused(tmp_path: Path) -> None:
    dropout = torch.nn.Dropout(0.5)  # in training mode, where nothing can see it
    for network, inputs in (
        (lambda x: dropout(x), np.ones((8, 64), np.float32)),
        (torch.nn.Identity().eval(), Jittered()),
    ):
        with pytest.raises(ProducerError, match="the second time: random transforms"):
            parbake.bake(Teacher(network, inputs), tmp_path / "s.zarr", progress=False)


def test_autocast_and_compile_are_options(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = made(Vision), Images(4)
    plain = VISION(network, images, outputs=("logits", "e"))
    lower = VISION(network, images, outputs=("logits", "e"), autocast="bfloat16")
    assert lower.schema()["logits"].dtype == np.float32  # there is no bfloat16 in Zarr
    exact, rounded = (np.asarray(t.produce(0, 4, ("logits",))["logits"]) for t in (plain, lower))
    assert 0 < np.abs(exact - rounded).max() < 0.05
    compile_, compiled = torch.compile, []
    monkeypatch.setattr(
        torch, "compile", lambda module: (compiled.append(module), compile_(module, backend="eager"))[1]
    )
    faster = VISION(network, images, outputs=("logits", "e"), compile=True)
    np.testing.assert_allclose(np.asarray(faster.produce(0, 4, ("logits",))["logits"]), exact, rtol=1e-6)
    assert len(compiled) == 1
    assert producer_keys(faster)[0] == producer_keys(plain)[0]
    assert producer_keys(lower)[0] != producer_keys(plain)[0]


# ---- keys


def test_weights_code_inputs_and_hooks_are_keys(tmp_path: Path) -> None:
    base = {"model": made(Vision), "inputs": Images(8), "post": top3}
    with parbake.bake(VISION(**base), tmp_path / "s.zarr", progress=False) as store:
        assert store.freshness(VISION(**{**base, "model": made(Vision), "inputs": Images(8)}))
        other = made(Vision)
        with torch.no_grad():
            other.head.bias[3] += 1e-3  # type: ignore[index, operator, union-attr]
        altered = Images(8)
        altered.images[5, 0, 0, 0] += 1
        for change, path in (
            ({"model": other}, "model"),
            ({"inputs": altered}, "inputs"),
            ({"post": functools.partial(top3)}, "post"),
            ({"autocast": "bfloat16"}, "autocast"),
        ):
            freshness = store.freshness(VISION(**{**base, **change}))
            assert not freshness
            assert any(path in change.path for change in freshness.changes), freshness


def test_keys_are_the_same_before_and_after_the_network_ran() -> None:
    teacher = VISION(made(Vision), Images(8), post=top3)
    before = producer_keys(teacher)[0]
    teacher.produce(0, 8, ("top",))
    assert producer_keys(teacher)[0] == before  # the dataset has a file open by now


def test_what_cannot_be_seen_needs_keys() -> None:
    class Hidden:
        def __init__(self) -> None:
            self.own = threading.Lock()

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x

    ones = np.ones((2, 3))
    with pytest.raises(KeysError, match="model"):
        producer_keys(Teacher(Hidden(), ones))
    keys = [producer_keys(Teacher(Hidden(), ones, keys={"mine": n}))[0] for n in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(KeysError, match="inputs"):
        producer_keys(Teacher(Hidden(), ones, keys={"inputs": 1}))


# ---- from the command line


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, args)
    return result.exit_code, result.output


def test_a_factory_with_weights_bakes_from_the_command_line(folder: Path) -> None:
    network = made(Vision)
    with torch.no_grad():
        network.head.bias += 1  # type: ignore[operator, union-attr]
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, folder / "w.pt")
    options = ("--model", "my_nets:Vision", "--weights", "w.pt", "--inputs", "my_nets:images")
    options += (
        "--input-names",
        "image",
        "--input-names",
        "label",
        "--args",
        "image",
        "--post",
        "my_nets:top3",
    )
    code, output = run("build", "teacher", *options, "-o", "s.zarr", "--workers", "2")
    assert code == 0, output
    with parbake.open_store("s.zarr") as store, torch.inference_mode():
        expected = top3(network(torch.from_numpy(Images(20).images)))
        np.testing.assert_allclose(store["top"][:], expected["top"], rtol=1e-5)
    assert run("check", "s.zarr", "teacher", *options) == (0, "fresh\n")
    code, output = run("check", "s.zarr")  # what the store says is never imported
    assert code == 2
    assert "name it" in output
    torch.save(made(Vision).state_dict(), folder / "w.pt")
    code, output = run("check", "s.zarr", "teacher", *options)
    assert code == 1
    assert "bias" in output


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_and_export_archives_bake_like_the_module(folder: Path) -> None:
    network, image = made(Vision), torch.zeros(2, 3, 8, 8)
    torch.jit.script(network).save(str(folder / "net.pt"))  # type: ignore[no-untyped-call]
    batch = {"image": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.export.save(torch.export.export(network, (image,), dynamic_shapes=batch), folder / "net.pt2")
    torch.export.save(torch.export.export(network, (image[:1],)), folder / "fixed.pt2")
    plain = VISION(network, Images(20), outputs=("logits", "e")).produce(0, 20, ("logits",))["logits"]
    for name in ("net.pt", "net.pt2"):
        teacher = VISION(name, Images(20), outputs=("logits", "e"))
        np.testing.assert_allclose(teacher.produce(0, 20, ("logits",))["logits"], plain, atol=1e-6)
        keys = producer_keys(teacher)[0]
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        network_in_process.cache_clear()  # as in a worker that begins now
        with pytest.raises(TeacherFileError, match="changed since"):
            pickle.loads(pickle.dumps(teacher)).produce(0, 2, ("logits",))
        again = VISION(name, Images(20), outputs=("logits", "e"), fields=teacher.schema())
        changes = compare(keys, producer_keys(again)[0]).changes
        assert [change.path for change in changes] == ["model.sha256"]
    with pytest.raises(ProducerError, match="dynamic batch axis"):
        VISION("fixed.pt2", Images(20)).schema()


# ---- refused


def partly_training() -> torch.nn.Module:
    network = made(Vision)
    network.dropout.train()  # type: ignore[operator, union-attr]
    return network


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "net.onnx"}, "neither module:factory nor a file"),
        ({"model": "net.pt"}, "no such file"),
        ({"weights": "w.pt"}, "no such file"),
        ({"num_samples": 0}, "less than 1"),
        ({"seed": -1}, "not from 0 to 2^64 - 1"),
        ({"seed": 2**64}, "not from 0 to 2^64 - 1"),
        ({"keys": "v3"}, "not a table of names"),
        ({"fields": ["y"]}, "not a table of names"),
        ({"fields": {"y": {"shape": [2]}}}, "dict is not parbake.Field"),
        ({"fields": {"y": Field((2,), "float32", ("a",))}, "store_dtype": "float16"}, "goes without fields"),
        ({"inputs": Images(0)}, "an empty dataset"),
        ({"post": torch.nn.Dropout()}, "post: is in training mode"),
        ({"model": partly_training()}, "its part 'dropout' (Dropout) is in training mode"),
        ({"model": "torch:pi.real.of"}, "has no 'pi.real.of'"),
        ({"store_dtype": "flout16"}, "is no dtype"),
        ({"device": "cuda:7"}, "cannot be used here"),
        ({"model": Vision()}, "call model.eval"),
        ({"model": 3}, "cannot be called"),
        ({"inputs": "images"}, "not module:name"),
        ({"inputs": lambda index: index}, "neither a map-style dataset"),
        ({"num_samples": 9}, "9 where the dataset has 8"),
        ({"args": ("picture",)}, "no part 'picture'; there is image, label"),
        ({"input_names": ("image",)}, "1 names"),
        ({"outputs": ("a", "b", "c")}, "3 names"),
        ({"store_dtype": {"z": "float16"}}, "no field 'z'"),
        ({"store_dtype": "int8"}, "would cut it"),
        ({"keep": ("label",), "outputs": ("label", "e")}, "rename one"),
        ({"post": 3}, "cannot be called"),
        ({"post": lambda output: output[0].sum()}, "first axis must be the batch"),
    ],
)
def test_a_task_that_cannot_be_is_refused_in_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises((RecipeError, ProducerError)) as caught:
        producer_keys(VISION(**{"model": made(Vision), "inputs": Images(8), **options}))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda state: {n: t for n, t in state.items() if n != "head.bias"}, "lacks head.bias"),
        (lambda state: {**state, "tail": torch.zeros(1)}, "holds unknown tail"),
        (lambda state: {**state, "head.bias": torch.zeros(11)}, "head.bias [11] where [10] is needed"),
        (lambda state: [1, 2], "holds a list"),
    ],
)
def test_weights_that_do_not_fit_say_where(folder: Path, spoil: Callable[[Any], Any], text: str) -> None:
    torch.save(spoil(made(Vision).state_dict()), folder / "w.pt")
    with pytest.raises(TeacherFileError) as caught:
        Teacher("my_nets:Vision", Images(8), weights=Path("w.pt")).schema()
    assert text in str(caught.value)


def test_weights_that_hold_code_are_not_run(folder: Path) -> None:
    torch.save(made(Vision), folder / "w.pt")
    with pytest.raises(TeacherFileError, match="weights_only"):
        Teacher("my_nets:Vision", Images(8), weights=Path("w.pt")).schema()


def test_a_sample_that_the_dataset_cannot_give_stops_with_its_index(tmp_path: Path) -> None:
    teacher = VISION(made(Vision), Images(40, broken=(17,)))
    with pytest.raises(ProducerError, match=r"sample 17: the inputs failed: OSError: image 17 is truncated"):
        parbake.bake(teacher, tmp_path / "s.zarr", batch_size=8, progress=False)


def test_a_masked_sample_is_nan_and_leaves_the_others_alone(tmp_path: Path) -> None:
    broken = (0, 1, 17, *range(24, 32))  # the first that are probed, one within, a whole batch
    options: dict[str, Any] = {"post": top3, "keep": ("label",)}
    masked = VISION(made(Vision), Images(40, broken), on_error="mask", **options)
    with parbake.bake(masked, tmp_path / "s.zarr", batch_size=8, progress=False) as store:
        found = columns(store)
    whole = VISION(made(Vision), Images(40), **options)
    with parbake.bake(whole, tmp_path / "whole.zarr", batch_size=8, progress=False) as store:
        expected = columns(store)
    good = np.array([index not in broken for index in range(40)])
    np.testing.assert_array_equal(found["valid"], good)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name][good], values[good])
    assert np.isnan(found["top"][~good]).all()
    assert not found["classes"][~good].any()


def test_the_command_line_tells_of_masked_samples_and_of_no_other_field_named_valid(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = VISION(made(Vision), Images(10, broken=(3, 7)), on_error="mask")
    flags = np.zeros((4, 3), np.float32)
    other = Teacher(lambda x: x, flags, outputs=("valid",))
    for producer, text in ((teacher, "2 samples masked, valid is False: 3, 7"), (other, "")):
        with parbake.bake(producer, folder / "s.zarr", rebuild=True, progress=False) as store:
            show_bake(store.path, store, None, as_json=False)
        assert text in (errors := capsys.readouterr().err)
        assert ("masked" in errors) == bool(text)


def test_nan_of_the_network_is_refused_also_where_samples_are_masked(tmp_path: Path) -> None:
    images = Images(40, broken=(3,))
    images.images[21] = np.nan
    for options in ({"on_error": "mask"}, {"on_error": "stop"}):
        source = images if options["on_error"] == "mask" else torch.utils.data.Subset(images, range(4, 40))
        teacher = VISION(made(Vision), source, **options)
        with pytest.raises(ProducerError, match=r"NaN in .*sample (21|17)"):
            parbake.bake(teacher, tmp_path / "s.zarr", rebuild=True, batch_size=8, progress=False)


def test_outputs_that_change_shape_or_overflow_are_refused(tmp_path: Path) -> None:
    def growing(x: torch.Tensor) -> torch.Tensor:
        return x[:, : 2 + int(x[0, 0] > 10)]

    numbers = np.arange(40, dtype=np.float32).repeat(4).reshape(40, 4)
    with pytest.raises(ProducerError, match=r"samples 16-23: field 'y' has shape \[8, 3\]"):
        parbake.bake(Teacher(growing, numbers), tmp_path / "s.zarr", batch_size=8, progress=False)
    teacher = Teacher(lambda x: 1e4 * x, numbers, store_dtype="float16")
    with pytest.raises(ProducerError, match="70000 has no place in float16"):
        parbake.bake(teacher, tmp_path / "t.zarr", batch_size=7, progress=False)


def test_items_of_different_sizes_are_refused_with_what_to_do() -> None:
    ragged = [np.ones(3), np.ones(4)]
    with pytest.raises(ProducerError, match=r"make no batch .* pad them .* or give collate="):
        Teacher(lambda x: x, ragged).schema()

    def padded(items: list[Any]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(item) for item in items], batch_first=True)

    assert Teacher(lambda x: x, ragged, collate=padded).schema()["y"].shape == (4,)


# ---- what runs is what the keys name


def test_a_network_that_is_trained_after_the_recipe_was_made_is_baked_as_it_is(tmp_path: Path) -> None:
    network = torch.nn.Linear(4, 2).eval()
    teacher = Teacher(network, np.ones((6, 4), np.float32))
    teacher.schema()  # runs it
    for value in (7.0, 8.0):
        with torch.no_grad():
            network.weight.zero_()
            network.bias.fill_(value)
        with parbake.bake(teacher, tmp_path / "s.zarr", rebuild=True, progress=False) as store:
            np.testing.assert_array_equal(store["y"][:], value)
            assert store.freshness(Teacher(network, np.ones((6, 4), np.float32)))


def test_an_archive_that_is_replaced_after_it_was_read_is_another_one(folder: Path) -> None:
    def save(value: float) -> None:
        network = torch.nn.Linear(4, 2).eval()
        with torch.no_grad():
            network.bias.fill_(value)
        torch.jit.script(network).save("net.pt")  # type: ignore[no-untyped-call]

    save(1.0)
    first, inputs = Teacher("net.pt", np.zeros((6, 4), np.float32)), np.zeros((6, 4), np.float32)
    first.schema()
    save(2.0)
    with parbake.bake(first, "s.zarr", progress=False) as store:
        np.testing.assert_array_equal(store["y"][:], 1)
        assert not store.freshness(Teacher("net.pt", inputs))


def test_a_callable_that_keeps_something_stays_fresh(tmp_path: Path) -> None:
    class Keeping:
        def __init__(self) -> None:
            self.seen: dict[int, int] = {}

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            self.seen[len(self.seen)] = len(x)
            return x

    teacher = Teacher(Keeping(), np.ones((6, 4), np.float32))
    with parbake.bake(teacher, tmp_path / "s.zarr", progress=False) as store:
        assert store.freshness(teacher)


def test_a_network_in_a_module_is_left_as_it_is_by_weights(folder: Path) -> None:
    (folder / "my_nets.py").write_text("import torch\nNET = torch.nn.Linear(4, 2)\n")
    inputs = np.ones((6, 4), np.float32)
    keys = {}
    for name in "ab":
        torch.save(torch.nn.Linear(4, 2).state_dict(), f"{name}.pt")
        keys[name] = Teacher("my_nets:NET", inputs, weights=Path(f"{name}.pt"))
        producer_keys(keys[name])
    first, second = (producer_keys(keys[name])[0] for name in "ab")
    assert first != second
    assert sys.modules["my_nets"].NET.training


@pytest.mark.parametrize("name", ["net", "images"])
def test_a_factory_that_makes_another_thing_in_each_process_is_refused(folder: Path, name: str) -> None:
    (folder / "my_nets.py").write_text(
        "import functools\nimport numpy as np\nimport torch\n\n\n"
        "def net():\n    return functools.partial(torch.mul, torch.rand(4))\n\n\n"
        "def images():\n    return np.random.normal(size=(8, 4)).astype(np.float32)\n"
    )
    inputs: Any = "my_nets:images" if name == "images" else np.ones((8, 4), np.float32)
    teacher = Teacher("my_nets:net" if name == "net" else torch.nn.Identity().eval(), inputs)
    producer_keys(teacher)
    sent = pickle.loads(pickle.dumps(teacher))  # a worker draws others
    with pytest.raises((TeacherFileError, RecipeError), match="in each process"):
        sent.produce(0, 8, ("y",))


def test_a_worker_makes_named_inputs_once(folder: Path) -> None:
    (folder / "my_nets.py").write_text(
        "import numpy as np\n\nMADE = []\n\n\ndef images():\n    MADE.append(1)\n    return np.ones((8, 4))\n"
    )
    teacher = Teacher(torch.nn.Identity().eval(), "my_nets:images")
    producer_keys(teacher)
    content = pickle.dumps(teacher)
    for _ in range(3):
        pickle.loads(content).produce(0, 8, ("y",))
    assert len(sys.modules["my_nets"].MADE) == 2  # here, and "there"


def test_a_fresh_seed_bakes_with_the_network_of_the_keys(folder: Path) -> None:
    (folder / "my_nets.py").write_text(
        "import functools\nimport torch\n\n\n"
        "def net():\n    return functools.partial(torch.mul, torch.rand(4))\n\n\n"
        "def draw(index, rng):\n    return rng.normal(size=4).astype('f4')\n"
    )
    teacher = Teacher("my_nets:net", "my_nets:draw", num_samples=8, seed="fresh", keep=("x",))
    with parbake.bake(teacher, "s.zarr", progress=False) as store:
        with torch.inference_mode():
            expected = teacher._network.plain(torch.from_numpy(store["x"][:]))
        np.testing.assert_allclose(store["y"][:], expected, rtol=1e-5)


# ---- values that must not change on their way


def test_a_kept_input_is_stored_as_it_came_where_the_network_writes_into_it(tmp_path: Path) -> None:
    inputs = -np.ones((6, 4), np.float32)
    teacher = Teacher(torch.nn.ReLU(inplace=True).eval(), inputs, keep=("x",))
    with parbake.bake(teacher, tmp_path / "s.zarr", progress=False) as store:
        np.testing.assert_array_equal(store["x"][:], inputs)
        assert not store["y"][:].any()


NUMBERS = np.arange(12, dtype=np.float32).reshape(6, 2)


@pytest.mark.parametrize(
    ("network", "fields", "text"),
    [
        (lambda x: (x * 1e4).long(), "float16", "has no place in float16"),
        (lambda x: torch.complex(x.double() * 1e300, x.double()), "complex64", "has no place in complex64"),
        (lambda x: torch.complex(x, x), "float32", "imaginary part"),
        (lambda x: -x.long(), "uint64", "-1 has no place in uint64"),
        (lambda x: x.to_sparse(), "float32", "make it dense"),
    ],
)
def test_values_without_a_place_in_the_declared_field_are_refused(
    tmp_path: Path, network: Any, fields: str, text: str
) -> None:
    teacher = Teacher(network, NUMBERS, fields={"y": Field((2,), fields, ("axis",))})
    with pytest.raises(ProducerError, match=text):
        parbake.bake(teacher, tmp_path / "s.zarr", progress=False)


@pytest.mark.parametrize(
    ("network", "store_dtype", "text"),
    [
        (lambda x: torch.complex(x, x), {"y": "float32"}, "would cut it"),
        (lambda x: x, "y=float16,float64", "nor field=dtype"),
        (lambda x: x.to_sparse(), None, "make it dense"),
    ],
)
def test_stored_forms_that_cannot_be_are_refused_at_once(network: Any, store_dtype: Any, text: str) -> None:
    with pytest.raises((RecipeError, ProducerError), match=text):
        Teacher(network, NUMBERS, store_dtype=store_dtype).schema()


def test_unsigned_and_foreign_numbers_are_masked_and_stored(tmp_path: Path) -> None:
    class Depths(Images):
        def __getitem__(self, index: int) -> Any:
            super().__getitem__(index)
            return np.full(3, index, np.uint16)

    def swapped(x: torch.Tensor) -> Any:
        return x.numpy().astype(">f4")

    teacher = Teacher(swapped, Depths(6, broken=(4,)), keep=("x",), on_error="mask")
    with parbake.bake(teacher, tmp_path / "s.zarr", progress=False) as store:
        np.testing.assert_array_equal(store["x"][:, 0], [0, 1, 2, 3, 0, 5])
        np.testing.assert_array_equal(store["y"][:, 0], [0, 1, 2, 3, np.nan, 5])


def test_nan_in_complex_outputs_is_refused_where_samples_are_masked(tmp_path: Path) -> None:
    teacher = Teacher(lambda x: torch.complex(x, x / 0), NUMBERS, on_error="mask")
    with pytest.raises(ProducerError, match="has NaN in sample 0"):
        parbake.bake(teacher, tmp_path / "s.zarr", progress=False)


# ---- datasets that keep something


class Reader:
    def __init__(self) -> None:
        self.file: Any = None

    def read(self, index: int) -> np.ndarray[Any, Any]:
        self.file = self.file or threading.Lock()
        return np.full(4, index, np.float32)


class Keeping(torch.utils.data.Dataset[Any]):
    """Keeps its items in a list, its file in a reader, and itself in what it is made of."""

    def __init__(self, count: int) -> None:
        self.items: list[Any] = [None] * count
        self.reader = Reader()
        self.load = self.loaded
        self.owner = self

    def loaded(self, index: int) -> Any:
        if self.items[index] is None:
            self.items[index] = self.reader.read(index)
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.load(index)


@pytest.mark.parametrize("count", [20, 2000])
def test_what_a_dataset_keeps_leaves_its_keys_alone(tmp_path: Path, count: int) -> None:
    dataset = Keeping(count)
    teacher = Teacher(torch.nn.Identity().eval(), dataset, num_samples=20)
    with parbake.bake(teacher, tmp_path / "s.zarr", progress=False) as store:
        np.testing.assert_array_equal(store["y"][:, 0], np.arange(20))
        assert store.freshness(Teacher(torch.nn.Identity().eval(), dataset, num_samples=20))
    assert dataset.items[0] is None
    assert dataset.reader.file is None


def test_a_dataset_that_closes_its_file_at_its_end_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "numbers").write_bytes(bytes(range(8)))

    class Closing:
        def __init__(self) -> None:
            self.file = (tmp_path / "numbers").open("rb")

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> float:
            self.file.seek(index)
            return float(self.file.read(1)[0])

        def __del__(self) -> None:
            self.file.close()

    dataset = Closing()
    for _ in range(2):
        Teacher(torch.nn.Identity().eval(), dataset).produce(0, 8, ("y",))
    gc.collect()
    assert dataset[3] == 3
    file = dataset.file
    del dataset
    gc.collect()
    assert file.closed


def test_a_factory_whose_weights_hold_nan_makes_the_same_twice(folder: Path) -> None:
    (folder / "my_nets.py").write_text(
        "import torch\n\n\ndef net():\n    found = torch.nn.Identity()\n"
        "    found.register_buffer('limit', torch.tensor(float('nan')))\n    return found\n"
    )
    assert producer_keys(Teacher("my_nets:net", np.ones((6, 4), np.float32)))
