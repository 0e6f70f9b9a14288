"""A device for machines that have one only: CPU tensors that live apart, as those of a GPU do.

    with Elsewhere():
        found = step(there(queries), there(gallery))

They are on `meta` by name. To mix them with tensors of the CPU, or to make numpy arrays of them, is
an error, as it is with CUDA: a step that passes moves its tensors itself.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

PLACE = torch.device("meta")
_COPIES = ("aten::_to_copy", "aten::copy_")
_INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


class Apart(torch.Tensor):
    """A tensor on `PLACE`; `inner` has its values."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=PLACE,
        )

    def __init__(self, inner):
        self.inner = inner

    def tolist(self):
        return self.inner.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert a tensor of another device to numpy: use cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Inside, tensors made on `PLACE` are real ones."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def there(tensor):
    """A copy on `PLACE`."""
    return Apart(tensor.clone())


def here(tensor):
    """The values on the CPU."""
    return tensor.inner if isinstance(tensor, Apart) else tensor


def _run(func, args, kwargs):
    name = func._schema.name
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    apart = any(isinstance(t, Apart) for t in tensors)
    others = [t for t in tensors if t.ndim and not isinstance(t, Apart)]
    if name in _INDEXING and isinstance(args[0], Apart):  # CUDA takes indices of the CPU
        others = [t for t in args[2:3] if t.ndim and not isinstance(t, Apart)]
    if apart and others and name not in _COPIES:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    if name == "aten::_local_scalar_dense":
        return here(args[0]).item()
    kwargs = dict(kwargs)
    if kwargs.get("device") is not None:
        apart = torch.device(kwargs["device"]) == PLACE
        kwargs["device"] = torch.device("cpu")
    inner = {id(here(t)): t for t in tensors}
    found = func(*tree_map(here, args), **tree_map(here, kwargs))

    def wrapped(value):
        if not isinstance(value, torch.Tensor):
            return value
        # In place, or into `out`: the tensor that was given.
        return inner.get(id(value)) if id(value) in inner else Apart(value) if apart else value

    return tree_map(wrapped, found)
