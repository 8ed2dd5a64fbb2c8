"""Everything parbake raises on purpose. One line each: what, where, what was found, what to do."""

from __future__ import annotations

from collections.abc import Sequence


def one_line(text: object) -> str:
    """``text`` without line breaks, as an error shows it."""
    return " ".join(str(text).split())


def described(error: BaseException) -> str:
    """Somebody else's error in one line: its class and text."""
    return one_line(f"{type(error).__name__}: {error}")


class ParbakeError(Exception):
    """Base of all errors that parbake raises on purpose; its text is one line."""


class RecipeError(ParbakeError, ValueError):
    """A recipe, parameter or option that cannot be used as given."""


class SchemaError(ParbakeError, ValueError):
    """A field's declaration that cannot be stored."""


class KeysError(ParbakeError, TypeError):
    """A value that cannot enter the invalidation keys; the text names its path."""


class ProducerError(ParbakeError):
    """A producer that raised, or whose output does not fit its schema; what was baked stays."""


class TeacherFileError(ParbakeError, ValueError):
    """A model file of an unknown kind, or with missing or misshapen weights."""


class MeshError(ParbakeError, ValueError):
    """A mesh, or a pair of meshes, that nothing can be interpolated on."""


class LegacyFileError(ParbakeError, ValueError):
    """A file of ``torch.save`` or pickle that holds code, or no samples in a form that is known."""


class StoreNotFoundError(ParbakeError, FileNotFoundError):
    """No store at this path."""


class StoreWarning(UserWarning):
    """Something about a store or file that is worth knowing; told once."""


class NotAStoreError(ParbakeError, ValueError):
    """Something is at this path, but nothing that parbake baked and sealed."""


class UnfinishedStoreError(ParbakeError):
    """A bake at this path began and did not end; it can be resumed."""


class StaleStoreError(ParbakeError):
    """The stored invalidation keys differ from the wanted ones; ``changes`` lists how."""

    def __init__(self, message: str, changes: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.changes = tuple(changes)

    def __reduce__(self) -> tuple[type[StaleStoreError], tuple[str, tuple[object, ...]]]:
        return type(self), (str(self), self.changes)


class DamagedStoreError(ParbakeError):
    """Bytes that are missing, misplaced, cut or changed."""


class StoreReplacedError(ParbakeError):
    """The store was replaced by another bake while this reader had it open."""


class NotReproducibleError(ParbakeError):
    """A repair whose new bytes differ from the recorded ones."""


class NoSpaceError(ParbakeError, OSError):
    """The disk is full; what was baked stays and the bake can be resumed."""
