"""The one way in which functions of this package are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Return the function compiled by Numba: without the GIL, cached on disk, strictly IEEE 754.

    Never fastmath: a contraction or a reassociation would change bits. Division by zero gives what
    IEEE 754 says (`error_model="numpy"`) instead of an exception.
    """
    result: _Function = numba.njit(
        nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True
    )(function)
    return result


def inlined(function: _Function) -> _Function:
    """Return the function compiled for use inside `compiled` ones, always inlined by LLVM.

    It cannot be called from Python: leaving out the way in makes the first run a second faster.
    """
    result: _Function = numba.njit(
        forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
    )(function)
    return result
