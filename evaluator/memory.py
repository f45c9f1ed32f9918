"""How much memory measuring may take besides the dense weights, and giving back what it no longer needs.

A search holds the dense weights and the installed ones, which is up to twice the dense. What makes it faster has to fit
into a fraction more: prepared levels and the dense model's activations between layers.
"""

import ctypes
import sys

import torch

LEVELS_SHARE = 0.3  # of the dense weights' bytes, for prepared weights
PREFIX_SHARE = 0.2  # and for activations of the search text
LEAST_BYTES = 2**25  # for each, however small the model
_DEVICE_SHARE = 0.2  # of a GPU's free memory, for prepared weights: there is no cache of the disk behind them


def allowance(share: float, weights_bytes: int) -> int:
    """Return bytes that may be used for a purpose: a share of the dense weights', and never too few to be of use."""
    return max(LEAST_BYTES, int(share * weights_bytes))


def levels_allowance(device: torch.device, weights_bytes: int) -> int:
    """Return bytes that prepared weights may take where the model is."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(LEAST_BYTES, int(_DEVICE_SHARE * free))
    return allowance(LEVELS_SHARE, weights_bytes)


def give_back() -> None:
    """Let the operating system have memory that was freed.

    The C library keeps freed memory that lies below memory in use. After a stage whose large intermediates are gone but
    whose small results stay that is most of it, a multiple of the dense weights.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library, not of others
        if trim is not None:
            trim(0)
