"""Networks by name, from archives and as objects: brought to a device and called without gradients."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parbake.errors import KeysError, RecipeError, TeacherFileError, described, one_line
from parbake.producers.recipe import named_object
from parbake.store.capture import Captured, capture
from parbake.store.files import file_sha256
from parbake.store.keys import digest

if TYPE_CHECKING:
    import torch

_SCRIPTED = (".pt", ".pth", ".ts", ".torchscript")
_EXPORTED = (".pt2",)
_WRAPPED = "state_dict"  # the key under which training frameworks keep the weights in a checkpoint


def archive_path(model: Any) -> Path | None:
    """The file where ``model`` is the path of a TorchScript file or a torch.export archive, else None."""
    if not isinstance(model, str | Path) or (isinstance(model, str) and ":" in model):
        return None
    path = Path(model)
    if path.suffix not in _SCRIPTED + _EXPORTED:
        raise _refused(
            f"model: {str(model)!r} is neither module:factory nor a file of TorchScript "
            f"({', '.join(_SCRIPTED)}) or torch.export ({', '.join(_EXPORTED)})"
        )
    return path


def made_network(model: Any, weights: Path | None) -> Callable[..., Any]:
    """The network that a recipe names, on the CPU or where it was made, in eval mode; made anew.

    ``model``: an archive, ``module:factory`` (a function or class without arguments, or the network
    itself), a torch module, or any callable. ``weights``: a state_dict that ``torch.save`` wrote, read
    with ``weights_only=True``. Raises RecipeError, TeacherFileError.
    """
    if (path := archive_path(model)) is not None:
        if weights is not None:
            raise _refused(f"weights: {path.name} brings its own; leave the option out")
        return _from_archive(path)
    if isinstance(model, str):
        return _made(model, weights)
    if not callable(model):
        raise _refused(f"model: {type(model).__name__} is not a network: it cannot be called")
    if weights is not None:
        raise _refused("weights: goes with module:factory; load them into the model yourself")
    if _is_module(model) and model.training:
        raise _refused("model: in training mode (dropout, batch norm); call model.eval() first")
    refuse_training(model, "model")
    network: Callable[..., Any] = model
    return network


@dataclass(frozen=True, eq=False)
class Network:
    """``plain``: as it was made, which the keys are taken from. ``run``: what is called, on the device.

    They are two objects where it can be copied: many keep something from one call to the next.
    """

    plain: Callable[..., Any]
    run: Callable[..., Any]


def placed(network: Callable[..., Any], device: str, compiled: bool) -> Network:
    """``network`` copied to ``device``, and compiled on its first call where that is asked for."""
    import torch

    run = _copied(network)
    if isinstance(run, torch.nn.Module):
        run = run.to(device)
    return Network(network, torch.compile(run) if compiled else run)


def named_network(
    model: str | Path, weights: Path | None, content: Sequence[str], device: str, compiled: bool
) -> Network:
    """The network of a recipe that names it in words, made anew.

    Raises TeacherFileError where the SHA-256 of its files is no longer ``content``: what is baked must
    have come from the weights that the keys name.
    """
    if content_of(model, weights) != content:
        raise TeacherFileError(f"{weights or model}: changed since the producer was made; make it again")
    return placed(made_network(model, weights), device, compiled)


@dataclass(frozen=True)
class Origin:
    """Of a recipe that was sent: a token of its own, and the digests of what its factories made there."""

    token: str
    network: str | None
    inputs: str | None


@functools.lru_cache(maxsize=2)
def network_in_process(
    model: str | Path,
    weights: Path | None,
    content: Sequence[str],
    device: str,
    compiled: bool,
    origin: Origin,
) -> Network:
    """The network of a recipe that came from another process, made once in this one.

    Raises TeacherFileError like ``named_network``, and where a factory makes another network here than
    it made there, as one that draws its weights does.
    """
    network = named_network(model, weights, content, device, compiled)
    if origin.network not in (None, content_digest(network.plain)):
        raise TeacherFileError(
            f"teacher: model: {model} makes another network in each process; draw its weights from a fixed "
            "seed, or load them (weights=)"
        )
    return network


def content_digest(thing: Any) -> str | None:
    """Digest of what a network or dataset holds and of its code, None where that cannot be seen."""
    captured = Captured()
    try:
        return digest({"content": capture(thing, captured), "source": captured.source})
    except KeysError:
        return None


def content_of(model: Any, weights: Path | None) -> tuple[str, ...]:
    """SHA-256 of the files that a recipe's network is made from."""
    return tuple(file_sha256(path) for path in (archive_path(model), weights) if path is not None)


def _made(spec: str, weights: Path | None) -> Callable[..., Any]:
    """The network that a factory makes, or that stands in the module, in eval mode."""
    found = named_object(spec)
    if _is_module(found):
        found = _copied(found)  # the module's own stays as it is
    else:
        if not callable(found):
            raise _refused(f"model: {spec} is a {type(found).__name__}, not a factory of a network")
        made = found
        try:
            found = made()
            again = made() if weights is None and _is_module(found) else found
        except Exception as error:  # whatever the user's code raises
            text = described(error)
            raise _refused(
                f"model: {spec}() failed: {text}; it makes the network, without arguments"
            ) from error
        if not callable(found):
            raise _refused(f"model: {spec}() gives {type(found).__name__}, which cannot be called")
        if again is not found and not _same_state(found, again):
            raise _refused(
                f"model: {spec}() gives other weights each time; name them with weights=, or seed them in it"
            )
    if weights is not None:
        found = _copied(found)
        _load_weights(found, weights)
    network: Callable[..., Any] = found.eval() if _is_module(found) else found
    refuse_training(network, "model")
    return network


def _same_state(one: Any, other: Any) -> bool:
    """Whether two modules hold the same, NaN too; true where that cannot be seen."""
    return content_digest(one.state_dict()) == content_digest(other.state_dict())


def refuse_training(network: Any, where: str) -> None:
    """Refuses a module a part of which draws at random, or goes by the batch. Raises RecipeError."""
    import torch

    if not _is_module(network):
        return
    modules = torch.nn.modules
    kinds = (modules.dropout._DropoutNd, modules.batchnorm._BatchNorm, torch.nn.RReLU)
    for name, part in network.named_modules():
        if part.training and isinstance(part, kinds):
            place = f"its part {name!r} ({type(part).__name__}) is" if name else "is"
            raise _refused(f"{where}: {place} in training mode; call .eval() first")


def _copied(network: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return copy.deepcopy(network)
    except Exception:  # what cannot be copied runs as it is
        return network


def _is_module(network: Any) -> bool:
    import torch

    return isinstance(network, torch.nn.Module)


def _from_archive(path: Path) -> Callable[..., Any]:
    import torch

    if not path.is_file():
        raise TeacherFileError(f"{path}: no such model file")
    try:
        if path.suffix in _EXPORTED:
            found: Callable[..., Any] = torch.export.load(path).module()
        else:
            found = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        return found
    except Exception as error:  # zip, pickle and torch each have their own
        kind = "torch.export archive" if path.suffix in _EXPORTED else "TorchScript file"
        raise TeacherFileError(
            f"{path}: not a {kind} ({one_line(error)[:100]}); weights alone go with --model module:factory "
            "--weights FILE"
        ) from error


def _load_weights(network: Any, path: Path) -> None:
    import torch

    if not _is_module(network):
        raise _refused(f"weights: {type(network).__name__} is no torch module, and takes none")
    if not path.is_file():
        raise TeacherFileError(f"{path}: no such file of weights")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own
        more = "a whole module or other objects" if "weights_only" in str(error) else type(error).__name__
        raise TeacherFileError(
            f"{path}: not weights that torch.load(weights_only=True) reads ({more}); save the network's "
            "state_dict() there"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get(_WRAPPED), Mapping):
        state = state[_WRAPPED]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise TeacherFileError(f"{path}: holds a {type(state).__name__}, not a state_dict (names of tensors)")
    _check_fit(network.state_dict(), state, path)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError) as error:  # a module's own idea of its weights
        raise TeacherFileError(f"{path}: does not fit the model: {one_line(error)[:200]}") from error


def _check_fit(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], path: Path) -> None:
    misfits = [
        f"{word} {_names(names)}"
        for word, names in (
            ("lacks", [n for n in wanted if n not in found]),
            ("holds unknown", [n for n in found if n not in wanted]),
        )
        if names
    ]
    shapes = [
        f"{n} {list(found[n].shape)} where {list(wanted[n].shape)} is needed"
        for n in wanted
        if n in found and found[n].shape != wanted[n].shape
    ]
    if misfits or shapes:
        raise TeacherFileError(f"{path}: does not fit the model: {'; '.join([*misfits, *shapes[:3]])}")


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refused(text: str) -> RecipeError:
    return RecipeError(f"teacher: {text}")
