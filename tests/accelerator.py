"""A simulated accelerator: tensors that hold their numbers in this machine's memory and refuse to mix with its own.

Within `accelerator(...)` the device "cuda" (or "mps") exists. A tensor on it says so (`x.device`, `x.is_cuda`), is
computed with the kernels of the CPU, and follows the rules of a real one: an operation on tensors of both devices
raises `Mixed`, except for those that a GPU allows, which are copies, numbers without an axis in elementwise operations,
and indices on the CPU. Neither numpy nor a generator of the CPU can be used with it, and on "mps" there is no float64.
Results are those of the CPU to the bit where the same kernels are called, so that the two can be compared.

What it cannot show: another arithmetic, asynchronous errors, memory, and kernels that a GPU lacks.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
_aten = torch.ops.aten
_MOVES = {_aten.copy_.default, _aten._copy_from.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_NUMBERS = {_aten.fill_.Tensor, _aten.masked_fill.Tensor, _aten.masked_fill_.Tensor}
"""Operations that take a number without an axis from any device, in addition to elementwise ones."""


class Mixed(RuntimeError):
    """Tensors of two devices met, or one came to where its device has no place for it."""


class Card(Tensor):
    """A tensor on the simulated accelerator; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> "Card":
        made: Card = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CPU,
            requires_grad=requires_grad,
        )
        if _now is not None and _now.device.type == "mps" and held.dtype == torch.float64:
            raise Mixed("there is no float64 on mps")
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        assert _now is not None, "a tensor of the accelerator outlived it"
        return _now.device

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.device.type == "cuda"

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def __deepcopy__(self, known: dict[int, object]) -> Tensor:
        if id(self) in known:
            return known[id(self)]  # type: ignore[return-value]
        copied = Card(self.held.clone(), self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)  # type: ignore[assignment]
        known[id(self)] = copied
        return copied

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"Card({self.held})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


class _Simulation:
    """The device, whether new tensors come to lie on it now (in each thread), and what was done with it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.local = threading.local()
        self.done = SimpleNamespace(kind=device.type, pinned=0, generators=0, arithmetic=set())

    @property
    def here(self) -> bool:
        return getattr(self.local, "here", False)

    @contextmanager
    def placing(self, here: bool) -> Iterator[None]:
        before, self.local.here = self.here, here
        try:
            yield
        finally:
            self.local.here = before


_now: _Simulation | None = None


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors among arguments, and in lists of them."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(one for one in value if isinstance(one, Tensor))
    return found


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value with its tensors, and those in lists of them, changed."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)([_each(one, change) for one in value]) if type(value) in (list, tuple) else value


def _compute(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Compute an operation on what its tensors hold, after refusing a mixture."""
    tensors = _tensors(args, kwargs)
    cards = [leaf for leaf in tensors if isinstance(leaf, Card)]
    assert _now is not None
    if not cards:
        found = func(*args, **kwargs)
        return found if tensors or not _now.here else _each(found, _wrapped)
    if len(cards) < len(tensors):
        _check(func, args, [leaf for leaf in tensors if not isinstance(leaf, Card)])
    given = {id(card.held): card for card in cards}
    found = func(*_each(tuple(args), _held), **{name: _each(value, _held) for name, value in kwargs.items()})
    return _each(found, lambda value: given[id(value)] if id(value) in given else _wrapped(value))


def _held(x: Tensor) -> Tensor:
    """Return what a tensor on the accelerator holds, or a tensor of the CPU itself."""
    return x.held if isinstance(x, Card) else x


def _wrapped(held: Tensor) -> Card:
    """Return a tensor on the accelerator that is an inference tensor if what it holds is one."""
    with torch.inference_mode(held.is_inference()):
        return Card(held)


def _check(func: Any, args: Sequence[Any], others: Sequence[Tensor]) -> None:
    """Raise `Mixed` unless a GPU allows these tensors of the CPU among its own."""
    if func in _MOVES:
        return
    if func in _INDEXED and isinstance(args[0], Card):
        indices = {id(index) for index in args[1] if index is not None}
        others = [one for one in others if id(one) not in indices and one.ndim]
        if not others:
            return
    elif all(one.ndim == 0 for one in others):
        written = isinstance(args[0], Card) or not func._schema.is_mutable
        if written and (torch.Tag.pointwise in func.tags or func in _NUMBERS or func.__name__.startswith("_foreach")):
            return
    shapes = ", ".join(str(tuple(one.shape)) for one in others)
    raise Mixed(f"{func} was given tensors on the accelerator and on the CPU ({shapes})")


class _Dispatch(TorchDispatchMode):
    """Lets new tensors come to lie where the call that makes them wants them."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


class _Move(torch.autograd.Function):
    """A copy to the accelerator or back, which gradients go back through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: bool) -> Tensor:
        ctx.there = there
        return Card(x.detach().clone()) if there else x.detach().held.clone()  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _moved(gradient, not ctx.there), None


def _moved(x: Tensor, there: bool) -> Tensor:
    """Return a tensor on the accelerator, or on the CPU."""
    if isinstance(x, Card) == there:
        return x
    moved: Tensor = _Move.apply(x, there)
    return moved


class _Function(TorchFunctionMode):
    """Reads and rewrites the devices in calls from Python, since this torch may have no support for the real ones."""

    def __init__(self, simulation: _Simulation) -> None:
        super().__init__()
        self.simulation = simulation

    def __torch_function__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        words, name, now = dict(kwargs or {}), getattr(func, "__name__", ""), self.simulation
        if name == "__get__":
            return func(*args)
        if func is Tensor.data.__set__ and isinstance(args[0], Card):  # type: ignore[attr-defined]
            func(*args)
            args[0].held = args[1].held
            return None
        method = bool(args) and isinstance(args[0], Tensor)
        if method and name in ("cuda", "cpu", "to", "type_as", "numpy", "__array__", "tolist", "pin_memory"):
            return self._method(func, name, args, words)
        card = any(isinstance(leaf, Card) for leaf in _tensors(args, words))
        there = self._wanted([words.get("device")])
        if there is None and not card and not now.here and "generator" not in words:
            return func(*args, **words)
        if there is not None:
            words["device"] = CPU
        here = card if there is None else there
        generator = words.get("generator")
        if generator is not None and (getattr(generator, "simulated", False) != here):
            raise Mixed(f"{name} was given a generator of another device")
        with now.placing(here):
            found = func(*args, **words)
        if name == "as_tensor" or (there is not None and card != there):
            return _moved(found, here) if isinstance(found, Tensor) and there is not None else found
        return found

    def _wanted(self, devices: Sequence[object]) -> bool | None:
        """Return whether a call names the accelerator (True), the CPU (False) or no device (None)."""
        for device in devices:
            if isinstance(device, (str, torch.device)):
                return torch.device(device).type == self.simulation.device.type
        return None

    def _method(self, func: Any, name: str, args: Sequence[Any], words: dict[str, Any]) -> Any:
        """Call a method of a tensor that moves it or leads out of torch."""
        x, rest = args[0], list(args[1:])
        if name in ("numpy", "__array__", "tolist"):
            if isinstance(x, Card):
                if name != "tolist":
                    raise Mixed(f"can't convert a tensor on {x.device} to numpy: copy it to the CPU first")
                return x.held.tolist()
            return func(*args, **words)
        if name == "pin_memory":
            if isinstance(x, Card):
                raise Mixed("only tensors on the CPU can be pinned")
            self.simulation.done.pinned += 1
            return x
        if name in ("cuda", "cpu"):
            return _moved(x, name == "cuda")
        like = next((one for one in (*rest, words.get("other")) if isinstance(one, Tensor)), None)
        there = self._wanted([*rest, words.get("device")]) if like is None else isinstance(like, Card)
        there = isinstance(x, Card) if there is None else there
        kept: dict[str, Any] = {}
        for one in rest:
            if isinstance(one, torch.dtype):
                kept["dtype"] = one
        kept |= {key: words[key] for key in ("dtype", "memory_format") if words.get(key) is not None}
        if like is not None:
            kept["dtype"] = like.dtype
        if not there:
            x = _moved(x, False)
        with self.simulation.placing(there):
            found = torch.Tensor.to(x, **kept) if kept else x  # what moves is converted before, as torch does for MPS
        found = _moved(found, there)
        asks_copy = words.get("copy") or (len(rest) > 1 and rest[-1] is True and name == "to" and len(rest) == 4)
        return found.clone() if asks_copy and found is args[0] else found


class _Generator:
    """What `torch.Generator` makes within `accelerator`: one that knows whether it is of the accelerator."""

    real = torch.Generator

    def __new__(cls, device: object = "cpu") -> Any:
        assert _now is not None
        made = type("Generator", (cls.real,), {"simulated": False})()
        if torch.device(device).type == _now.device.type:  # type: ignore[arg-type]
            type(made).simulated = True
            _now.done.generators += 1
        return made


@contextmanager
def _modes(simulation: _Simulation) -> Iterator[None]:
    """Turn the simulation on in this thread."""
    with _Dispatch(), _Function(simulation):
        yield


@contextmanager
def accelerator(kind: str = "cuda") -> Iterator[SimpleNamespace]:
    """Simulate an accelerator, in this thread and in those that it starts.

    Args:
        kind: "cuda" or "mps".

    Yields: Its `kind`, and what was done with it: `pinned` tensors, `generators`, and the `arithmetic` of autocast.
    """
    global _now
    simulation = _Simulation(torch.device(kind, 0))
    autocast, run, backward = torch.autocast, threading.Thread.run, torch.autograd.backward
    grad = torch.autograd.grad

    def as_on_cpu(device_type: str, *args: Any, **words: Any) -> AbstractContextManager[object]:
        assert device_type in (kind, "cpu")
        if words.get("enabled", True):
            simulation.done.arithmetic.add(device_type)
        return autocast("cpu", *args, **words)

    def run_there(thread: threading.Thread) -> None:
        with _modes(simulation):
            run(thread)

    def placed(call: Callable[..., Any]) -> Callable[..., Any]:
        def placing(tensors: Any, *args: Any, **words: Any) -> Any:
            here = any(isinstance(leaf, Card) for leaf in _tensors((tensors,), {}))
            with simulation.placing(here):
                return call(tensors, *args, **words)

        return placing

    patches = [
        patch.object(torch, "autocast", as_on_cpu),
        patch.object(torch, "Generator", _Generator),
        patch.object(threading.Thread, "run", run_there),
        patch.object(torch.autograd, "backward", placed(backward)),
        patch.object(torch.autograd, "grad", placed(grad)),
        # a module's parameters change their class when they move
        patch.object(torch.__future__, "_overwrite_module_params_on_conversion", True),
        patch.object(torch.cuda, "is_available", lambda: kind == "cuda"),
        patch.object(torch.backends.mps, "is_available", lambda: kind == "mps"),
        patch("torch.cuda.memory_reserved", lambda device: 3 * 2**30),
        patch("torch.cuda.memory_allocated", lambda device: 2**30),
        patch("torch.cuda.max_memory_allocated", lambda device: 2 * 2**30),
        patch("torch.cuda.mem_get_info", lambda device: (2**33, 2**35)),
    ]
    for one in patches:
        one.start()
    _now = simulation
    try:
        with _modes(simulation):
            yield simulation.done
    finally:
        for one in reversed(patches):
            one.stop()
        _now = None
