"""Any network over any inputs as a producer."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np

from parbake.errors import KeysError, ParbakeError, ProducerError, RecipeError, SchemaError, described
from parbake.producers.batches import to_host
from parbake.producers.devices import usable_device
from parbake.producers.networks.inputs import (
    Source,
    detached,
    inputs_in_process,
    inputs_object,
    is_drawn,
    named_parts,
    source_of,
)
from parbake.producers.networks.models import (
    Network,
    Origin,
    archive_path,
    content_digest,
    content_of,
    made_network,
    named_network,
    network_in_process,
    placed,
    refuse_training,
)
from parbake.producers.networks.outputs import converted_to, copied, masked, moved, named_outputs
from parbake.producers.recipe import named_object, option, settle, without_caches
from parbake.store.capture import Captured, capture
from parbake.store.keys import JSON
from parbake.store.layout import Field

VALID = "valid"  # the scalar that on_error="mask" adds
_PROBED_MAX = 64  # samples that are tried to see the fields
_HOOKS = ("post", "reset", "collate")


@dataclass(frozen=True)
class Teacher:
    """Any network over a dataset or over drawn inputs.

    ``model``: a torch module in eval mode, any callable, ``"module:factory"``, a TorchScript file (.pt)
    or a torch.export archive (.pt2); with ``weights``, a state_dict for it. ``inputs``: a map-style
    dataset, a function ``(index, rng)`` whose random numbers depend on (seed, index) alone, or
    ``"module:name"`` of either. Several processes (``--workers``) make the network once each where it is
    named in words; one that is passed as an object is sent along with every slab.

    The items of a batch are stacked by torch's default collation, or by ``collate(items)``. The parts of a
    dict are passed to the network by name, those of a tuple by position; ``input_names`` names the latter
    ("x" where there is one), ``args`` picks those that the network takes, ``keep`` those to store.

    The network gives a tensor (field "y"), a tuple (``outputs`` names it, else "y0", "y1", ...) or a dict,
    the first axis being the batch; ``post(output)`` turns it, on the device, into what is stored (top-k,
    pooling, a band limit). ``reset(network)`` is called before each batch, for networks with a state.
    ``store_dtype``: one for all floating-point fields, or ``{field: dtype}`` ("logits=float16,..." as
    text). ``fields``: ``{name: Field}`` with dims and units; else all is read off the first batch.

    A dataset that raises stops the bake with the index; with ``on_error="mask"`` the sample is NaN (0 in
    whole numbers) and the scalar ``valid`` is False there. ``keys``: whatever else the values depend on;
    with it, parts whose content cannot be seen enter by name. ``autocast``: lower precision for the
    operations that bear it. ``compile``: torch.compile, which may change the last bits.

    Raises RecipeError, TeacherFileError; ProducerError where the network or the dataset fails.
    """

    name: ClassVar[str] = "teacher"
    version: ClassVar[int] = 1

    model: Any = field(metadata=option("module:factory, a TorchScript file (.pt) or an export (.pt2)."))
    inputs: Any = field(metadata=option("module:name of a dataset or of a function (index, rng)."))
    weights: Path | None = field(default=None, metadata=option("state_dict for module:factory."))
    num_samples: int | None = field(
        default=None, metadata=option("Samples of the store; default: all of the dataset.")
    )
    outputs: tuple[str, ...] = field(default=(), metadata=option("Name of an output of a tuple."))
    input_names: tuple[str, ...] = field(default=(), metadata=option("Name of a part of an input tuple."))
    args: tuple[str, ...] = field(
        default=(), metadata=option("Part of the inputs that the network takes; default: all.")
    )
    keep: tuple[str, ...] = field(default=(), metadata=option("Part of the inputs to store as well."))
    store_dtype: Any = field(
        default=None, metadata=option("Dtype of floating-point fields, or field=dtype,... for some.")
    )
    fields: Any = field(default=None, metadata={"option": False})
    post: Any = field(default=None, metadata=option("module:function of the output, on the device."))
    reset: Any = field(default=None, metadata=option("module:function to call before each batch."))
    collate: Any = field(default=None, metadata=option("module:function that makes a batch of items."))
    autocast: Literal["bfloat16", "float16"] | None = field(
        default=None, metadata=option("Lower precision where operations bear it.")
    )
    compile: bool = field(default=False, metadata=option("Compile the network first."))
    on_error: Literal["stop", "mask"] = field(
        default="stop", metadata=option("Where the dataset raises: stop, or mark the sample.")
    )
    seed: int | Literal["fresh"] = field(default=0, metadata=option("Seed of drawn inputs."))
    device: str = field(
        default="auto", metadata=option("Where it runs: auto (CUDA if present), cpu, cuda:0, ...")
    )
    keys: Any = field(default=None, metadata={"option": False})
    content: tuple[str, ...] = field(init=False, repr=False)  # of its files when this was made

    def __post_init__(self) -> None:
        settle(self)
        for name, path in (("weights", self.weights), ("model", archive_path(self.model))):
            if path is not None and not path.is_file():
                raise RecipeError(f"teacher: {name}: {path}: no such file")
        object.__setattr__(self, "content", content_of(self.model, self.weights))
        if self.num_samples is not None and self.num_samples < 1:
            raise RecipeError(f"teacher: num_samples: {self.num_samples} is less than 1")
        if self.seed != "fresh" and not 0 <= self.seed < 2**64:
            raise RecipeError(f"teacher: seed: {self.seed} is not from 0 to 2^64 - 1, and not 'fresh'")
        for name in ("fields", "keys"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, Mapping):
                raise RecipeError(f"teacher: {name}: {given!r} is not a table of names")
        for name, declared in (self.fields or {}).items():
            if not isinstance(declared, Field):
                raise RecipeError(f"teacher: fields: {name}: {type(declared).__name__} is not parbake.Field")
        if self._store_dtypes() and self.fields is not None:
            raise RecipeError("teacher: store_dtype: goes without fields=, each of which has its own")

    def __getstate__(self) -> dict[str, Any]:
        _ = self._origin  # worked out here once, to be sent along
        return without_caches(self, keep=("_probed", "_origin"))

    def with_seed(self, seed: int) -> Teacher:
        """The same with ``seed``, and with the very network and inputs that this one has."""
        found = object.__new__(type(self))
        vars(found).update(vars(self), seed=seed)
        return found

    def __len__(self) -> int:
        length = self._source(0).length
        if self.num_samples is None:
            if length is None:
                raise RecipeError("teacher: num_samples: missing; drawn inputs have no number")
            return length
        if length is not None and self.num_samples > length:
            raise RecipeError(f"teacher: num_samples: {self.num_samples} where the dataset has {length}")
        return self.num_samples

    def schema(self) -> dict[str, Field]:
        """The declared fields, else those read off the first batch; and ``valid`` where it is asked for."""
        fields = dict(self._declared)
        if self.on_error == "mask":
            if VALID in fields:
                raise SchemaError(f"teacher: field {VALID!r} is what on_error='mask' adds; rename yours")
            for name, declared in fields.items():
                fields[name] = replace(declared, allow_nan=declared.dtype.kind in "fc")
            fields[VALID] = Field((), "bool", (), description="whether the dataset gave this sample")
        return fields

    def invalidation_keys(self) -> dict[str, JSON]:
        """The network and the inputs by content, and how the one is applied to the other."""
        parts: dict[str, Any] = {
            "model": self._model_key(),
            "inputs": self._inputs,
            **{name: hook for name in _HOOKS if (hook := self._hook(name)) is not None},
        }
        keys: dict[str, Any] = {
            "outputs": self.outputs,
            "input_names": self.input_names,
            "args": self.args,
            "autocast": self.autocast,
            "on_error": self.on_error,
        }
        if is_drawn(self._inputs):
            keys["seed"] = self.seed
        if self.keys is not None:
            if clash := dict(self.keys).keys() & (parts.keys() | keys.keys()):
                raise KeysError(f"teacher: keys: {sorted(clash)} are the producer's own; rename them")
            parts = {name: _vouched(part) for name, part in parts.items()} | dict(self.keys)
        return parts | keys

    def _model_key(self) -> Any:
        if archive_path(self.model) is not None:
            return {"sha256": self.content[0]}
        if self._is_named:
            return self._network.plain
        vars(self).pop("_network", None)  # a copy of what it was: it may have been trained since
        return made_network(self.model, self.weights)

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, Any]:
        """The named fields of samples [start, stop): tensors on the device, or NumPy arrays."""
        values, failed = self._computed(start, stop, self._source(self.seed), frozenset(fields))
        schema = self.schema()
        if values is None:  # nothing to run the network on
            named = [name for name in fields if name != VALID]
            values = {n: np.zeros((stop - start, *schema[n].shape), schema[n].dtype) for n in named}
        out: dict[str, Any] = {}
        for name in fields:
            if name == VALID and self.on_error == "mask":
                out[name] = np.array([index not in failed for index in range(start, stop)])
                continue
            if name not in values:
                raise ProducerError(f"teacher: field {name!r} is not among {', '.join(values)}")
            out[name] = converted_to(values[name], schema[name].dtype, name)
            if self.on_error == "mask":
                out[name] = masked(out[name], start, failed, name, self._declared[name].allow_nan)
        return out

    # ---- parts, each found once

    @property
    def _declared(self) -> Mapping[str, Field]:
        return self._probed if self.fields is None else cast(Mapping[str, Field], self.fields)

    @cached_property
    def _inputs(self) -> Any:
        if isinstance(self.inputs, str) and (origin := vars(self).get("_origin")) is not None:
            return inputs_in_process(self.inputs, origin)
        return inputs_object(self.inputs)

    @cached_property
    def _fetched(self) -> Any:
        return detached(self._inputs)

    def _source(self, seed: int | str) -> Source:
        return source_of(self._fetched, seed)

    @cached_property
    def _device(self) -> str:
        return usable_device(self.device, self.name)

    @property
    def _is_named(self) -> bool:
        return isinstance(self.model, str | Path)

    @cached_property
    def _origin(self) -> Origin:
        made = vars(self)  # nothing is made for its sake: the keys, which come first, need both
        network, inputs = made.get("_network"), made.get("_inputs")
        factory = self._is_named and archive_path(self.model) is None
        return Origin(
            secrets.token_hex(8),
            content_digest(network.plain) if factory and network is not None else None,
            content_digest(inputs) if isinstance(self.inputs, str) and inputs is not None else None,
        )

    @cached_property
    def _network(self) -> Network:
        if self._is_named:
            recipe = (self.model, self.weights, self.content, self._device, self.compile)
            if (origin := vars(self).get("_origin")) is not None:  # it was sent here
                return network_in_process(*recipe, origin)
            return named_network(*recipe)
        return placed(made_network(self.model, self.weights), self._device, self.compile)

    def _hook(self, name: str) -> Any:
        given = getattr(self, name)
        hook = named_object(given) if isinstance(given, str) else given
        if hook is not None and not callable(hook):
            raise RecipeError(f"teacher: {name}: {type(hook).__name__} cannot be called")
        refuse_training(hook, name)
        return hook

    def _store_dtypes(self) -> dict[str, np.dtype[Any]]:
        """Stored dtype by field; under "" the one of all floating-point fields."""
        given = self.store_dtype
        if isinstance(given, str) and "=" in given:
            given = {name: dtype for name, _, dtype in (part.partition("=") for part in given.split(","))}
        if not isinstance(given, Mapping):
            given = {} if given is None else {"": given}
        try:
            return {name.strip(): np.dtype(dtype) for name, dtype in given.items()}
        except (TypeError, AttributeError):
            raise RecipeError(
                f"teacher: store_dtype: {self.store_dtype!r} is no dtype, nor field=dtype,..."
            ) from None

    @cached_property
    def _probed(self) -> dict[str, Field]:
        """The fields, read off a batch of two: the first whose inputs do not fail."""
        source = self._source(0 if self.seed == "fresh" else self.seed)
        if not len(self):
            raise RecipeError("teacher: inputs: an empty dataset")
        for start in range(0, min(_PROBED_MAX, len(self)), 2):
            count = min(2, len(self) - start)
            try:
                values, again = (self._computed(start, start + count, source, None)[0] for _ in range(2))
            except ParbakeError:
                raise
            except Exception as error:  # whatever the network raises
                fixed = isinstance(self.model, str) and self.model.endswith(".pt2")
                hint = "; export it with a dynamic batch axis (torch.export.Dim)" if fixed else ""
                if isinstance(error, TypeError) and not self.args:
                    hint = "; choose the parts of the inputs that the network takes with args"
                text = described(error)
                raise ProducerError(f"teacher: samples {start}-{start + count - 1}: {text}{hint}") from error
            if values is not None and again is not None:
                _check_repeats(values, again)
                return self._fields_of(values, count)
        raise ProducerError(
            "teacher: the inputs of all first samples fail: no field can be seen; pass fields="
        )

    def _fields_of(self, values: Mapping[str, Any], count: int) -> dict[str, Field]:
        dtypes = self._store_dtypes()
        if unknown := [name for name in dtypes if name and name not in values]:
            raise RecipeError(f"teacher: store_dtype: no field {unknown[0]!r}; there is {', '.join(values)}")
        return {name: self._field_of(name, value, count, dtypes) for name, value in values.items()}

    def _field_of(self, name: str, value: Any, count: int, dtypes: Mapping[str, np.dtype[Any]]) -> Field:
        array, wait = to_host(value, "teacher: the first batch", name)
        if wait is not None:
            wait()
        if array.ndim == 0 or len(array) != count:
            raise ProducerError(
                f"teacher: field {name!r} has shape {list(array.shape)} for a batch of {count}; the first "
                "axis must be the batch"
            )
        wanted = dtypes.get(name, dtypes.get("", array.dtype) if array.dtype.kind == "f" else array.dtype)
        if wanted.kind not in {"f": "fc", "c": "c"}.get(array.dtype.kind, wanted.kind):
            raise RecipeError(f"teacher: store_dtype: field {name!r} is {array.dtype}; {wanted} would cut it")
        dims = tuple(f"{name}_{axis}" for axis in range(array.ndim - 1))
        return Field(array.shape[1:], wanted, dims)

    # ---- one batch

    def _computed(
        self, start: int, stop: int, source: Source, wanted: frozenset[str] | None
    ) -> tuple[dict[str, Any] | None, dict[int, Exception]]:
        """Kept inputs and outputs of a batch, and the samples that failed; None where all did."""
        parts, by_name, failed = self._batch(start, stop, source)
        if parts is None:
            return None, failed
        if missing := [name for name in (*self.args, *self.keep) if name not in parts]:
            raise ProducerError(
                f"teacher: the inputs have no part {missing[0]!r}; there is {', '.join(parts)}"
            )
        values = {name: parts[name] for name in self.keep}
        if wanted is None or wanted - values.keys() - ({VALID} if self.on_error == "mask" else set()):
            passed = {n: copied(parts[n]) if n in self.keep else parts[n] for n in self.args or parts}
            outputs = named_outputs(self._run(passed, by_name), self.outputs)
            if clash := outputs.keys() & values.keys():
                raise ProducerError(
                    f"teacher: {sorted(clash)} name inputs and outputs; rename one (outputs=)"
                )
            values |= outputs
        return values, failed

    def _batch(
        self, start: int, stop: int, source: Source
    ) -> tuple[dict[str, Any] | None, bool, dict[int, Exception]]:
        """The parts of a batch of inputs, whether they are passed by name, and the samples that failed."""
        items, failed = source.fetch(start, stop)
        if failed and self.on_error == "stop":
            index, error = next(iter(failed.items()))
            text = described(error)
            raise ProducerError(
                f"teacher: sample {index}: the inputs failed: {text}; mend it, or mark such samples with "
                "on_error='mask'"
            ) from error
        if len(failed) == len(items):
            return None, False, failed
        good = next(item for i, item in enumerate(items, start) if i not in failed)
        items = [good if i in failed else item for i, item in enumerate(items, start)]  # as wide as without
        try:
            batch = (self._hook("collate") or _default_collate())(items)
        except Exception as error:  # items of different sizes, or whatever the user's code raises
            text = described(error)
            raise ProducerError(
                f"teacher: samples {start}-{stop - 1}: the inputs make no batch ({text}); pad them to one "
                "size and keep their lengths, or give collate="
            ) from error
        return named_parts(batch, self.input_names), isinstance(batch, Mapping), failed

    def _run(self, passed: Mapping[str, Any], by_name: bool) -> Any:
        import torch

        network, device = self._network.run, self._device
        kind = torch.device(device).type
        lower = (
            torch.autocast(kind, getattr(torch, self.autocast)) if self.autocast else contextlib.nullcontext()
        )
        passed = {name: moved(value, device) for name, value in passed.items()}
        with torch.inference_mode(), lower:
            if (reset := self._hook("reset")) is not None:
                reset(network)
            output = network(**passed) if by_name else network(*passed.values())
            post = self._hook("post")
            return output if post is None else post(output)


def _check_repeats(values: Mapping[str, Any], again: Mapping[str, Any]) -> None:
    """Refuse what comes out otherwise the second time: a bake could never be repaired, or grown."""
    for name, value in values.items():
        one, other = (np.asarray(to_host(v, "teacher", name)[0]) for v in (value, again.get(name)))
        if one.shape != other.shape or not np.allclose(one, other, rtol=1e-2, atol=1e-5, equal_nan=True):
            raise ProducerError(
                f"teacher: field {name!r} has other values for the same samples the second time: random "
                "transforms, dropout, or a state that reset= should clear; let them depend on the index alone"
            )


def _vouched(part: Any) -> Any:
    """``part`` where its content can be seen, else its name."""
    try:
        capture(part, Captured())
    except KeysError:
        return {"name": str(getattr(part, "__qualname__", type(part).__qualname__)), "vouched": True}
    return part


def _default_collate() -> Callable[[list[Any]], Any]:
    from torch.utils.data import default_collate

    collate: Callable[[list[Any]], Any] = default_collate
    return collate
