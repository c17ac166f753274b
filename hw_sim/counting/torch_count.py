"""Count what any torch module costs as it stands, by the operators that torch dispatches.

Below the modules every convolution, linear layer, matrix product and attention passes torch's
dispatcher with the tensors that it works on, whatever library the module is from and whether a layer,
a function or a loop called it. Each is counted there with its real operands: events times exact
fan-out, classed by frame as everywhere (`tally`).

A tensor is data where it depends on the inputs, made where the run made it out of nothing (a state of
zeros), and stored otherwise (parameters, buffers, and what is computed from them). The stored side of
a product is its weight. What is computed without any data costs nothing: it is the same in every
inference.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from knarr.hw_sim.counting.counts import LayerSizes, LedgerRow, OperationCounts
from knarr.hw_sim.counting.tally import LayerTally, Tallies
from knarr.hw_sim.counting.torch_operators import (
    FACTORIES,
    FREE,
    MOVES,
    OTHERS,
    PRODUCTS,
    Call,
    CallCosts,
    Convolved,
)
from knarr.hw_sim.counting.torch_products import (
    Contraction,
    FanOuts,
    UncountedError,
    convolve,
    deliver,
    meet,
    storage_of,
)
from knarr.hw_sim.errors import CountError, first_line

Origin = Literal["data", "made", "stored"]
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
"""Modules that are one product: their path alone is its name."""
LIBRARY_KERNELS = ("CompositeExplicitAutograd", "CPU")
"""Kernels that a library's operator may have, the first of which runs."""
BY_FORMULA = "computed from no input: the same in every inference"
TWO_ACTIVATIONS = (
    "product of two activations: pairs where both are not 0, ACC where one side is of spikes"
)


def count_torch(
    module: nn.Module,
    inputs: Any,
    *,
    batch_axis: int | None = 0,
    time_axis: int | None = None,
    timesteps: int | None = None,
    stepped: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> OperationCounts:
    """Run a torch module on inputs and count every operation that it dispatches.

    Samples run one by one, each on a copy of the module as it was given, so that no state passes
    from one to the next and the module is left as it was. A frame, by which events are classed, is
    one step of one sample: where a module holds several steps in one tensor, say how many there are.

    Args:
        module: any network, in eval mode; with neurons at rest.
        inputs: a tensor or an array, or a tuple of them, one for each argument of the module. Arrays
            of floats, truth values and bytes become tensors of the module's type; other integers
            stay what they are. The batch may lie on any axis.
        batch_axis: axis of the inputs along which samples lie; None: the inputs are one inference.
        time_axis: axis of the first input along which steps lie; None: it has none.
        timesteps: steps of an inference, where the module makes them itself (of a still image, say).
        stepped: the module is one step. It is called with the first input at each step; where it
            returns (output, state), the state is given back to it as the second argument.
        progress: called with the samples counted so far after each.

    Returns:
        Counts per inference: means over the samples, per row. A row is the path of the module that
        ran the operation, with the parameter's or the operator's name behind it where that alone
        does not tell them apart. `elementwise` has what neurons, norms and activations do, element
        by element: torch knows no neurons, so `neuron_updates` and `spikes` are 0.

    Raises:
        CountError: inputs that do not fit, a module that fails on them or that cannot be copied, or
            an output that depends on no input in torch's eyes. An operator without a rule is a row
            of the ledger, and `.total` raises.
    """
    if not isinstance(module, nn.Module):
        raise CountError(f"module: {type(module).__name__} is no torch module; give an nn.Module")
    arguments = _arguments(module, inputs)
    samples = _samples(arguments, batch_axis)
    steps = _steps(arguments[0], time_axis, timesteps, stepped)
    counting = _Counting(module, 1 if stepped else steps)
    for at in range(samples):
        one = [
            value.clone() if batch_axis is None else value.narrow(batch_axis, at, 1).clone()
            for value in arguments
        ]
        counting.run(one, steps, time_axis if stepped else None)
        if progress is not None:
            progress(at + 1)
    return counting.finish(steps)


def _arguments(module: nn.Module, inputs: Any) -> list[Tensor]:
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    floats = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    found = []
    for value in given:
        try:
            tensor = (
                value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise CountError(
                f"inputs: no array of numbers ({first_line(error)}); give tensors or arrays"
            ) from error
        whole = tensor.dtype in (torch.int16, torch.int32, torch.int64)
        if not isinstance(value, Tensor) and not whole and not tensor.is_complex():
            tensor = tensor.to(floats)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CountError(
                "inputs: NaN or infinity is neither an event nor silence; find where it comes from"
            )
        found.append(tensor)
    if not found:
        raise CountError("inputs: none; give a tensor, an array or a tuple of them")
    return found


def _samples(arguments: list[Tensor], batch_axis: int | None) -> int:
    if batch_axis is None:
        return 1
    sizes = set()
    for tensor in arguments:
        if not 0 <= batch_axis < tensor.dim():
            raise CountError(
                f"batch_axis: {batch_axis}, an input has the shape {tuple(tensor.shape)}; choose an axis it has, or None"
            )
        sizes.add(tensor.shape[batch_axis])
    if len(sizes) != 1 or 0 in sizes:
        raise CountError(
            f"inputs: {sorted(sizes)} samples along axis {batch_axis}; give the same number in each, at least one"
        )
    return int(sizes.pop())


def _steps(first: Tensor, time_axis: int | None, timesteps: int | None, stepped: bool) -> int:
    if timesteps is not None and (isinstance(timesteps, bool) or timesteps < 1):
        raise CountError(f"timesteps: {timesteps}, needs a whole number from 1")
    if time_axis is None:
        if stepped:
            raise CountError("stepped: needs the axis of the steps; give time_axis")
        return timesteps or 1
    if not 0 <= time_axis < first.dim() or first.shape[time_axis] == 0:
        raise CountError(
            f"time_axis: {time_axis}, the input has the shape {tuple(first.shape)}; choose an axis it has"
        )
    steps = int(first.shape[time_axis])
    if timesteps not in (None, steps):
        raise CountError(
            f"timesteps: {timesteps}, axis {time_axis} of the input has {steps}; leave timesteps out"
        )
    return steps


class _Counting:
    """Adds up sample after sample of one module.

    Args:
        module: left as it is.
        steps: of an inference that may lie side by side in one tensor.
    """

    def __init__(self, module: nn.Module, steps: int) -> None:
        self.module, self.steps = module, steps
        self.tallies = Tallies(())
        self.sizes: dict[str, LayerSizes] = {}
        self.operations: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.free: Counter[tuple[str, str]] = Counter()
        self.refused: dict[tuple[str, str], str] = {}
        self.readers: dict[str, set[str]] = {name: set() for name, _ in module.named_parameters()}
        self.fan_outs = FanOuts()

    def run(self, inputs: list[Tensor], steps: int, time_axis: int | None) -> None:
        """Run and count one sample."""
        module = _copied(self.module)
        self.tallies.begin(np.array([steps], dtype=np.int64))
        mode = _Dispatch(self, module, inputs)
        try:
            with _plain_operators(), torch.inference_mode(), mode.running():
                output = _called(module, inputs, time_axis)
        except CountError:
            raise
        except Exception as error:  # whatever a module raises about inputs that it cannot take
            shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
            raise CountError(
                f"module: fails on one sample of shape {shapes} ({type(error).__name__}: {first_line(error)[:200]}); "
                "check the inputs and their axes"
            ) from error
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if not any(mode.origin(tensor) == "data" for tensor in tensors):
            raise CountError(
                "module: its output depends on no input that torch sees; what runs outside of torch (numpy, own kernels) "
                "cannot be counted"
            )

    def tally(self, name: str, operation: str) -> LayerTally:
        """Return the tally of a row, a new one where there is none."""
        if name not in self.tallies:
            tally = LayerTally(name)
            # Samples before this one did not run it.
            for _ in range(self.tallies.samples):
                tally.begin(1)
            self.tallies[name] = tally
            self.operations[name] = operation
        return self.tallies[name]

    def finish(self, steps: int) -> OperationCounts:
        """Return the means over everything that was run."""
        ledger = []
        for name, tally in self.tallies.items():
            note = self.notes.get(name, "")
            if tally.frames:
                note = "; ".join(part for part in (tally.note, note) if part)
            ledger.append(LedgerRow(name, self.operations[name], "counted", note))
        for (operator, note), calls in self.free.items():
            ledger.append(LedgerRow(f"aten.{operator}", operator, "free", f"{note}; {calls} calls"))
        for (name, operator), reason in self.refused.items():
            ledger.append(LedgerRow(name, operator, "unsupported", reason))
        for name, readers in self.readers.items():
            if readers:
                shown = ", ".join(sorted(readers))
                ledger.append(LedgerRow(name, "Parameter", "folded", f"into {shown}"))
            else:
                note = "no call read it in this inference"
                ledger.append(LedgerRow(name, "Parameter", "free", note))
        sizes = {name: self.sizes.get(name, LayerSizes()) for name in self.tallies}
        counts = self.tallies.counts(ledger, sizes, "float")
        return replace(counts, timesteps=steps, per_step=None)


def _copied(module: nn.Module) -> nn.Module:
    """Copy a module with its state; parameters are shared."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()}
    for part in module.modules():
        for value in (*vars(part).values(), *part._buffers.values()):
            # A state that training left behind cannot be copied with its history.
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise CountError(
            f"module: cannot be copied ({type(error).__name__}: {first_line(error)[:200]}); bring its neurons to rest"
        ) from error


def _called(module: nn.Module, inputs: list[Tensor], time_axis: int | None) -> Any:
    if time_axis is None:
        return module(*inputs)
    outputs: list[Any] = []
    state: list[Any] = []
    for frame in inputs[0].unbind(time_axis):
        found = module(frame, *state)
        if isinstance(found, tuple) and len(found) == 2:
            found, state = found[0], [found[1]]
        outputs.append(found)
    return outputs


@contextmanager
def _plain_operators() -> Iterator[None]:
    """Keep torch from taking fused operators that nothing can be seen in."""
    fast = torch.backends.mha.get_fastpath_enabled()
    fused = torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(fused)


@dataclass(frozen=True)
class _Arrival:
    """One product of a call, its activation on the left; `weight` is None where both are data."""

    product: Contraction | Convolved
    weight: Tensor | None


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator of one run.

    Args:
        counting: what it adds to.
        module: the one that runs.
        inputs: of the sample.
    """

    def __init__(self, counting: _Counting, module: nn.Module, inputs: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counting = counting
        self.paths = {id(part): path for path, part in module.named_modules()}
        self.parameters = {storage_of(value): name for name, value in module.named_parameters()}
        self.stack: list[nn.Module] = []
        self.data: set[StorageWeakRef] = set()
        self.made: set[StorageWeakRef] = set()
        self.frames: Counter[str] = Counter()
        for tensor in inputs:
            self._mark(tensor, "data")

    @contextmanager
    def running(self) -> Iterator[None]:
        """See operators, and the modules that they run in, for as long as this lasts."""

        def enter(part: nn.Module, _: Any) -> None:
            self.stack.append(part)

        def leave(part: nn.Module, *_: Any) -> None:
            if self.stack and self.stack[-1] is part:
                self.stack.pop()

        with ExitStack() as stack:
            before = module_hooks.register_module_forward_pre_hook(enter)
            stack.callback(before.remove)
            behind = module_hooks.register_module_forward_hook(leave, always_call=True)
            stack.callback(behind.remove)
            stack.enter_context(self)
            yield

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch would load its whole compiler for it, which takes longer than most counts.
        return False

    def origin(self, tensor: Tensor) -> Origin:
        """Return where a tensor comes from."""
        if tensor.layout != torch.strided:
            return "data"  # it has no storage to tell it by
        storage = storage_of(tensor)
        if storage in self.data:
            return "data"
        return "made" if storage in self.made else "stored"

    def _mark(self, tensor: Tensor, origin: Origin) -> None:
        if origin == "stored" or tensor.layout != torch.strided:
            return
        places = self.data if origin == "data" else self.made
        places.add(storage_of(tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = _operator(func)
        known = operator in PRODUCTS or operator in OTHERS or operator in FREE
        if not known:
            # What is made of other operators is looked at there.
            with self:
                taken_apart = func.decompose(*args, **kwargs)
            if taken_apart is not NotImplemented:
                return taken_apart
            if func.namespace != "aten":
                return self._library_operator(func, operator, args, kwargs)
        out = func(*args, **kwargs)
        arguments = _bound(func, args, kwargs)
        tensors = [
            leaf for leaf in tree_leaves(list(arguments.values())) if isinstance(leaf, Tensor)
        ]
        origins = {self.origin(tensor) for tensor in tensors}
        if operator in PRODUCTS:
            call = Call(operator, arguments, out, self.counting.steps)
            try:
                costs = PRODUCTS[operator](call)
            except UncountedError as reason:
                self._refuse(operator, str(reason))
                costs = "refused"
            if costs is None:
                with self:
                    return func.decompose(*args, **kwargs)
            if isinstance(costs, CallCosts):
                self._count(call, costs, tensors)
        elif "data" in origins:
            self._see(func, Call(operator, arguments, out, self.counting.steps), tensors)
        elif tensors:
            self._free(operator, BY_FORMULA, tensors)
        self._pass_on(func, operator, origins, arguments, out)
        return out

    def _library_operator(
        self, func: Any, operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the kernel of a library's own operator, and see the operators that it calls itself."""
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        kernels = (key for key in LIBRARY_KERNELS if has_kernel(func.name(), key))
        key = next(kernels, None)
        if key is None:
            out = func(*args, **kwargs)
        else:
            with self:
                out = func._op_dk(getattr(torch._C.DispatchKey, key), *args, **kwargs)
        given, found = (
            [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
            for values in ([args, kwargs], out)
        )
        heard = any(self.origin(tensor) == "data" for tensor in given)
        # Loops of its own leave no trace of the data in what it gives.
        if heard and not any(self.origin(tensor) == "data" for tensor in found):
            self._refuse(
                operator, "an operator that torch cannot look into; there is no rule for it"
            )
            for tensor in found:
                self._mark(tensor, "data")
        return out

    def _pass_on(
        self, func: Any, operator: str, origins: set[Origin], arguments: dict[str, Any], out: Any
    ) -> None:
        """Note where the results come from, and what the call wrote into."""
        origin: Origin = "data" if "data" in origins else "stored"
        if operator in FACTORIES or not origins or origins == {"made"}:
            origin = "made"
        written = [
            arguments[argument.name]
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for tensor in tree_leaves([out, written]):
            # A view of what is stored, and what is written into it, stays stored but for data.
            if isinstance(tensor, Tensor) and (origin == "data" or not self._is_kept(tensor, func)):
                self._mark(tensor, origin)

    def _is_kept(self, tensor: Tensor, func: Any) -> bool:
        """Tell whether a result lies in storage that was there before the call."""
        return any(result.alias_info is not None for result in func._schema.returns)

    def _see(self, func: Any, call: Call, tensors: list[Tensor]) -> None:
        """Count a call on data that is no product."""
        operator = call.operator
        if operator in FREE or operator in FACTORIES or func.is_view:
            self._free(operator, FREE.get(operator, MOVES), tensors)
            return
        rule = OTHERS.get(operator)
        try:
            if rule is not None:
                costs = rule(call)
            elif torch.Tag.pointwise in func.tags:
                costs = CallCosts(columns={"elementwise": call.produced})
            else:
                raise UncountedError("there is no rule to count it by")
        except UncountedError as reason:
            self._refuse(operator, str(reason))
            return
        if isinstance(costs, str):
            self._free(operator, costs, tensors)
            return
        assert costs is not None  # only products are taken apart
        path = self._path()
        name = path or "elementwise"
        if self.counting.sizes.get(name) is not None:
            name = f"{path}.elementwise"
        tally = self.counting.tally(name, "Elementwise")
        self._add(tally, costs.columns)
        self._read(tensors, name)

    def _count(self, call: Call, costs: CallCosts, tensors: list[Tensor]) -> None:
        """Count the products of a call."""
        arrivals = []
        if costs.between is not None and any(self.origin(each) == "data" for each in tensors):
            self._mark(costs.between, "data")
        for product in costs.products:
            arrival = self._arrival(product)
            if arrival is None:
                self._free(call.operator, BY_FORMULA, tensors)
                return
            arrivals.append(arrival)
        name = self._row(call.operator, [arrival.weight for arrival in arrivals])
        tally = self.counting.tally(name, call.operator)
        for arrival in arrivals:
            try:
                self._multiply(name, tally, arrival)
            except UncountedError as reason:
                self._refuse(call.operator, str(reason))
        self._add(tally, costs.columns)
        if costs.bias is not None:
            self._add_bias(name, tally, costs.bias, call.produced)
        self._read(tensors, name)

    def _multiply(self, name: str, tally: LayerTally, arrival: _Arrival) -> None:
        product, step = arrival.product, self.frames[name]
        fan_outs = self.counting.fan_outs
        if isinstance(product, Convolved):
            if arrival.weight is None:
                raise UncountedError("convolves with weights that depend on the input")
            frames, sizes = convolve(
                tally, product.x, product.weight, product.out, product.geometry, fan_outs, step
            )
        elif arrival.weight is None:
            frames, sizes = meet(tally, product)
            self.counting.notes[name] = TWO_ACTIVATIONS
        else:
            frames, sizes = deliver(tally, product, fan_outs, step)
        self.frames[name] += frames
        self.counting.sizes.setdefault(name, sizes)

    def _add_bias(self, name: str, tally: LayerTally, bias: Tensor, adds: int) -> None:
        if self.origin(bias) != "stored":
            # A bias that is computed is added like any other tensor.
            tally.add("elementwise", adds)
        elif bool(bias.any()):
            tally.add("bias_adds", adds)
            sizes = self.counting.sizes[name]
            self.counting.sizes[name] = replace(sizes, biases=bias.numel())

    def _add(self, tally: LayerTally, columns: dict[str, int]) -> None:
        for column, amount in columns.items():
            tally.add(column, amount)

    def _arrival(self, product: Contraction | Convolved) -> _Arrival | None:
        """Put the activation of a product first; None where no side is one."""
        if isinstance(product, Convolved):
            left, right = product.x, product.weight
        else:
            left, right = product.left.tensor, product.right.tensor
        order: dict[Origin, int] = {"stored": 0, "made": 1, "data": 2}
        a, b = self.origin(left), self.origin(right)
        if a == b == "data":
            return _Arrival(product, None)
        if a == b:
            return None
        if order[a] > order[b]:
            return _Arrival(product, right)
        if isinstance(product, Convolved):
            return _Arrival(product, None)
        return _Arrival(replace(product, left=product.right, right=product.left), left)

    def _path(self) -> str:
        """Return the path of the module that runs; one that the root does not hold has its class."""
        if not self.stack:
            return ""
        part = self.stack[-1]
        return self.paths.get(id(part), type(part).__name__)

    def _row(self, operator: str, weights: list[Tensor | None]) -> str:
        """Return the row of a product: where it runs, and what tells it apart there."""
        path = self._path()
        if self.stack and isinstance(self.stack[-1], WEIGHTED) and path:
            return path
        for weight in weights:
            name = self._parameter(weight) if weight is not None else None
            if name is not None:
                return name.removesuffix(".weight")
        return ".".join(part for part in (path, operator) if part)

    def _parameter(self, tensor: Tensor) -> str | None:
        if tensor.layout != torch.strided:
            return None
        return self.parameters.get(storage_of(tensor))

    def _read(self, tensors: list[Tensor], name: str) -> None:
        for tensor in tensors:
            parameter = self._parameter(tensor)
            if parameter is not None:
                self.counting.readers[parameter].add(name)

    def _free(self, operator: str, note: str, tensors: list[Tensor]) -> None:
        self.counting.free[operator, note] += 1
        self._read(tensors, f"aten.{operator}")

    def _refuse(self, operator: str, reason: str) -> None:
        name = ".".join(part for part in (self._path(), operator) if part)
        self.counting.refused.setdefault((name, operator), reason)


def _operator(func: Any) -> str:
    """Return an operator's name without its overload, and alike whether it writes in place or not."""
    namespace, _, name = func._schema.name.partition("::")
    short = name if name.endswith("__") else name.removesuffix("_")
    return short if namespace == "aten" else f"{namespace}::{short}"


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return argument name -> value of a call, defaults included."""
    found = {}
    for at, argument in enumerate(func._schema.arguments):
        if at < len(args):
            found[argument.name] = args[at]
        elif argument.name in kwargs:
            found[argument.name] = kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value if argument.has_default_value() else None
    return found
