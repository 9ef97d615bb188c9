"""How a file's faults become one line that names it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eugen3d.datasets.dataparser import SceneError


def check_found(path: Path, expected: str) -> None:
    """Refuse a path at which there is no file.

    Raises:
        SceneError: there is none.
    """
    if not path.is_file():
        raise SceneError(f"{path}: not found, expected {expected}")


@contextmanager
def decoding(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a decoder raises at a broken file into one line; the decoders share no class of errors.

    Raises:
        SceneError: the file cannot be read as what was expected.
    """
    try:
        yield
    except SceneError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SceneError(f"{path}: cannot be read as {expected} ({reason})") from error
