"""Keep freed memory in the process: on Linux, handing every large tensor back costs more time than computing it."""

import ctypes
import sys

# Names of glibc's mallopt, from <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks instead of mapping fresh pages for each; return whether that was possible.

    It concerns the whole process, so programs call it, not libraries. Elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**30}
    return all(libc.mallopt(name, value) == 1 for name, value in settings.items())
