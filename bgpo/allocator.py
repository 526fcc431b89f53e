"""Keep freed memory in the process: a training step frees and takes the same large blocks over and over.

By default glibc hands every large block back to the kernel and gets it anew, page by page; on a small CPU model that
is a tenth of a step's processor time (`benchmarks/allocator.py`). Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Tune glibc's allocator for this process (mallopt(3)). False where there is no glibc."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # 32 MiB is the largest threshold glibc accepts; larger blocks go on being mapped one by one.
    settings = ((_M_MMAP_THRESHOLD, 32 * _MIB), (_M_TRIM_THRESHOLD, 1024 * _MIB), (_M_TOP_PAD, 64 * _MIB))
    return all(mallopt(key, value) for key, value in settings)
