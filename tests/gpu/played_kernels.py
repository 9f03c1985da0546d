"""A link that is played: when a copy may end, on the card's own clock in nanoseconds."""

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer


@triton.jit(do_not_specialize=["nanoseconds"])
def enter(free_ptr, until_ptr, nanoseconds):
    """Take the link as soon as it is free, for so long."""
    tl.atomic_max(free_ptr, globaltimer())
    tl.store(until_ptr, tl.atomic_add(free_ptr, nanoseconds) + nanoseconds)


@triton.jit
def leave(until_ptr):
    """Wait until then."""
    until = tl.load(until_ptr)
    now = globaltimer()
    while now < until:
        now = globaltimer()
