"""Reads trained amp models from their files, and makes torch modules of them when they are to run.

A file is parsed and checked in full without torch, so that a wrong one is refused at once.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from parbake.errors import TeacherFileError, one_line
from parbake.producers.audio.model_file import WANTED, shown
from parbake.producers.audio.nam import read_nam
from parbake.producers.audio.proteus import read_proteus

if TYPE_CHECKING:
    import torch

_FILE_NBYTES_MAX = 256 * 1024**2  # models of this kind are below 10 MB; a data set given by mistake is not


class AmpModel(Protocol):
    """A model file that was read and found complete.

    ``kind``: for people, such as "LSTM 40". ``sha256``: of the file's bytes. ``sample_rate``: the one
    that the file says it was made for (Hz), None where it says nothing.
    """

    @property
    def kind(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def sample_rate(self) -> float | None: ...
    def module(self, dtype: str, device: str) -> torch.nn.Module:
        """A torch module in ``dtype`` ("float64" or "float32") on ``device``, in eval mode.

        forward(x [batch, time, 1]) -> y of the same shape. Each call starts anew: a Proteus model from
        zero state, an LSTM of a .nam file from the state in the file, a WaveNet as after endless silence.
        """
        ...


def load_amp_model(path: Path) -> AmpModel:
    """The model in the file at ``path``. Does not import torch.

    Kinds: LSTM and GRU in the JSON of Proteus and GuitarML; LSTM and WaveNet in .nam files of version
    0.5. Raises TeacherFileError for a file that is absent, of another kind, or whose weights are
    missing, misshapen or not finite.
    """
    content = _content(path)
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: also what is not UTF-8
        raise TeacherFileError(f"{path}: not JSON ({one_line(error)[:80]}); {WANTED}") from None
    if not isinstance(parsed, dict):
        raise TeacherFileError(f"{path}: not a model but a JSON {type(parsed).__name__}; {WANTED}")
    for keys, read in _READERS.items():
        if keys <= parsed.keys():
            return read(path, parsed, hashlib.sha256(content).hexdigest())
    names = ", ".join(map(shown, list(parsed)[:5])) or "nothing"
    raise TeacherFileError(f"{path}: not a model file of a known kind (it holds {names}); {WANTED}")


@functools.lru_cache(maxsize=4)
def amp_module(path: Path, sha256: str, dtype: str, device: str) -> torch.nn.Module:
    """The module of the model at ``path``, made once in a process.

    Raises TeacherFileError where the file's content is no longer ``sha256``: what is baked must have
    come from the weights that the keys name.
    """
    model = load_amp_model(path)
    if model.sha256 != sha256:
        raise TeacherFileError(
            f"{path}: changed since the producer was made ({sha256[:12]} -> {model.sha256[:12]}); "
            "make the producer again"
        )
    return model.module(dtype, device)


def _content(path: Path) -> bytes:
    try:
        if (nbytes := path.stat().st_size) > _FILE_NBYTES_MAX:
            raise TeacherFileError(f"{path}: {nbytes:,} bytes are too many for a model file; {WANTED}")
        return path.read_bytes()
    except FileNotFoundError:
        raise TeacherFileError(f"{path}: no such teacher file") from None
    except OSError as error:
        raise TeacherFileError(f"{path}: the teacher file cannot be read: {error.strerror}") from None


_Reader = Callable[[Path, Mapping[str, Any], str], AmpModel]
# a file's kind shows in the names at its top, whatever its suffix
_READERS: Mapping[frozenset[str], _Reader] = {
    frozenset({"model_data", "state_dict"}): read_proteus,
    frozenset({"architecture", "config", "weights"}): read_nam,
}
