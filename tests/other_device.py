"""Tensors that say they are on another device and compute on the CPU: what is on the wrong device?

Inside `other_device()` everything made with `device=DEVICE` is such a tensor, and an operation
refuses tensors of both kinds, as CUDA does (a number without a dimension may come from the CPU).
Unlike plain meta tensors these have values, so that code which looks at lengths and borders runs.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# of a device that is not there, only this one has what autograd needs
DEVICE = torch.device("meta")
# what copies between devices
_COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class Elsewhere(torch.Tensor):
    """Holds a CPU tensor and says that it is on `DEVICE`."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=DEVICE,
        )  # fmt: skip

    def __init__(self, inner):
        self.inner = inner

    def tolist(self):
        return self.inner.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return dispatch(function, args, kwargs or {})


def dispatch(function, args, kwargs):
    """Runs an operation on the CPU tensors inside; refuses it where devices differ."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    is_elsewhere = any(isinstance(x, Elsewhere) for x in tensors)
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim]
    if is_elsewhere and here and function not in _COPIES:
        shapes = [tuple(x.shape) for x in here]
        raise RuntimeError(f"{function}: found tensors on the GPU, and on the CPU {shapes}")
    if kwargs.get("device") is not None:
        is_elsewhere = torch.device(kwargs["device"]) == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif function is torch.ops.aten.copy_.default:
        is_elsewhere = isinstance(args[0], Elsewhere)
    if function is torch.ops.aten._fused_sdp_choice.default:
        return 0  # the implementation that every device has
    known = {id(x.inner): x for x in tensors if isinstance(x, Elsewhere)}
    inner = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs))

    def outer(x):
        if not isinstance(x, torch.Tensor) or not is_elsewhere:
            return x
        return known.get(id(x)) if id(x) in known else Elsewhere(x)

    return tree_map(outer, function(*inner[0], **inner[1]))


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return dispatch(function, args, kwargs or {})


class _Values(TorchFunctionMode):
    """Keeps the values of `torch.tensor`, which makes meta tensors without asking."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is not torch.tensor or kwargs.get("device") != DEVICE:
            return function(*args, **kwargs)
        return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)


@contextmanager
def other_device():
    """Makes `DEVICE` hold tensors with values."""
    with _Values(), _Mode():
        yield DEVICE
