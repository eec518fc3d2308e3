"""Settings of the process of a command: memory, messages of libraries, and which of several processes prints."""

import ctypes
import os
import sys

# Names of glibc's mallopt, from <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks instead of mapping fresh pages for each; return whether that was possible.

    It changes the whole process, so programs call it, not libraries. Without glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**30}
    return all(libc.mallopt(name, value) == 1 for name, value in settings.items())


def prepare_process() -> None:
    """Tell the Auto classes of our models, turn off bars and messages of libraries, and keep freed memory."""
    import datasets
    import huggingface_hub
    import transformers

    from .. import families  # noqa: F401

    keep_freed_memory()
    huggingface_hub.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def is_first_process() -> bool:
    """Return whether this is the first of the processes that torchrun or `accelerate launch` started.

    Example:
        >>> is_first_process()
        True
    """
    return os.environ.get("RANK", "0") == "0"
