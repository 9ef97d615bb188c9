"""How the C library deals with memory that is freed."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
SETTINGS = ((M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20), (M_MMAP_MAX, 0))


def keep_freed_memory() -> bool:
    """Keep what is freed in this process for what is allocated next, instead of giving it back to the system.

    Large tensors otherwise come from the system page by page, zeroed, for every call anew: what a fast network writes
    takes as long to get as to compute. The process then stays as large as it ever was. glibc alone can do it.

    Returns:
        Whether it could be done.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in SETTINGS)
