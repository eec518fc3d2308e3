"""The process that a command runs in: memory, notes of libraries, and which of several processes speaks."""

import ctypes
import os
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


def prepare_process() -> None:
    """Turn off bars and notes of libraries, since those of this program are on stderr; keep freed memory."""
    import datasets
    import huggingface_hub
    import transformers

    keep_freed_memory()
    huggingface_hub.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def is_first_process() -> bool:
    """Return whether this process writes and speaks, of those that torchrun or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"
