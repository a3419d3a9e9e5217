"""From a recording to a plan: the straight line that a block computes, with the fused operations in their places.

A plan exists only where every call of the recording has its place in

    x -> module -> ... -> Linear -> activation | GLU of two halves | GLU of two Linears -> module -> ... -> result

(without the Linear, where there is none), so a block that does anything else is not understood, and says so.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from .._activations import ACTIVATIONS
from .._dropout import drawn
from .._operations import CLAMPED_SWIGLU, OPERATIONS
from .._surroundings import as_linear_casts, autocasts
from .._tiles import TileRows
from ..functional import CALLS, elementwise, with_dropout
from ..linear import any_global_hooks, has_hooks, is_unwatched
from ..mlp import linear_op_linear
from .forms import Found, classify, classify_call
from .guard import Holds, Modules, is_conv1d, linear_kind, make_guard
from .limits import Limits, between_limits
from .reads import Read
from .record import Event, Recording


class NotUnderstood(Exception):
    """Why there is no plan, as a clause for the report."""


class NothingToFuse(NotUnderstood):
    """It is understood, and there is no plan because of what it computes."""


class Options(NamedTuple):
    """Of patch(), for every plan."""

    activations: frozenset[str]
    recompute: bool
    tile_rows: TileRows = None
    dropout: bool = False

    @property
    def of_nodes(self) -> bool:
        """Whether one of them is about both Linears of a block."""
        return self.recompute or self.tile_rows is not None


@dataclass(frozen=True)
class Step:
    """One step of the line. Paths are of modules inside the block; "" is none."""

    op: str  # "module", or the name of an operation
    path: str = ""  # the module, the Linear before the activation, or the Linear of the activated half
    linear_path: str = ""  # act_mul: the module of the half that is not activated
    activation_path: str = ""  # the activation module that is not called any more
    names: tuple[Any, ...] = ()  # the operation's arguments that are no tensors
    takes_bias: bool = False  # the Linears' biases are added in the fused operation
    why_not: str = ""  # why it does not take them
    between: tuple[str, ...] = ()  # what stands after it, or before `second`, and does nothing or is dropout
    second: str = ""  # the Linear after the activation, in one autograd node with this step
    recompute: bool = False  # the node keeps the pre-activation only
    tile_rows: TileRows = None  # how many rows the node takes at a time
    drops: bool = False  # dropout that stands between is of the operation

    @property
    def firsts(self) -> tuple[str, ...]:
        """Before the activation: a Linear, or two."""
        return tuple(path for path in (self.path, self.linear_path) if path)

    @property
    def options(self) -> dict[str, Any]:
        """``names`` by what the operation calls them."""
        return dict(zip(OPERATIONS[self.op].names, self.names, strict=True))

    @property
    def activation(self) -> str:
        return OPERATIONS[self.op].only or self.options["activation"]

    @property
    def activated(self) -> str:
        """Which half; "" of an operation that has none."""
        return self.options.get("activated", "")

    @property
    def form(self) -> str:
        label, options = ACTIVATIONS[self.activation].label, self.options
        if "limit" in options:
            layout = options["layout"] if options["layout"] == "interleaved" else f"{options['layout']} half"
            return f"{label} up to {options['limit']:g}, {layout}"
        return label + (f", {self.activated} half" if self.activated else "")

    @property
    def function(self) -> str:
        """The public function that it is."""
        return OPERATIONS[self.op].called(self.activation, in_mlp=self.recompute or self.tile_rows is not None)

    def run(self, modules: Modules, x: Tensor) -> Tensor:
        if self.op == "module":
            return modules[self.path](x)
        between = [modules[path] for path in self.between]
        dropout = [module.p for module in between if _is_active(module)]
        if not dropout or (self.drops and len(dropout) == 1 and dropout[0] < 1):
            return (self.node if self.second else self.activate)(modules, x, *dropout)
        x = self.activate(modules, x)
        for module in between:
            x = module(x)
        return modules[self.second](x) if self.second else x

    def activate(self, modules: Modules, x: Tensor, dropout_p: float = 0.0) -> Tensor:
        firsts = [modules[path] for path in self.firsts]
        if self.takes_bias:
            pre = [F.linear(x, _weight(module)) for module in firsts]
            biases = [module.bias for module in firsts]
            if not isinstance(x, Proxy) and autocasts(x.device.type):
                biases = list(map(as_linear_casts, biases))
        else:
            pre = [module(x) for module in firsts] or [x]
            biases = [None for _ in pre]
            if self.op == "bias_act" and not dropout_p:
                return elementwise(pre[0], self.activation)
        op, args = OPERATIONS[self.op], (*pre, *biases, *self.names)
        if dropout_p:
            return with_dropout(op, self.op, args, dropout_p, True, None)
        return CALLS[self.op](self.op, *args)

    def node(self, modules: Modules, x: Tensor, dropout_p: float = 0.0) -> Tensor:
        firsts, second = [modules[path] for path in self.firsts], modules[self.second]
        weights, biases = [_weight(module) for module in firsts], [module.bias for module in firsts]
        return linear_op_linear(
            OPERATIONS[self.op],
            (*self.names, *drawn(self.op, x, dropout_p, True, None)),
            self.recompute,
            self.tile_rows,
            x,
            _weight(second),
            second.bias,
            *weights,
            *biases,
        )


def _weight(linear: nn.Module) -> Tensor:
    """As F.linear takes it; Conv1D keeps it transposed."""
    return linear.weight if isinstance(linear, nn.Linear) else linear.weight.t()


def _is_active(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout) and module.training and module.p > 0


@dataclass(frozen=True)
class Plan:
    """What runs in the place of a block's method, and when it may. It holds no module: equal blocks share one."""

    method: str
    argument: str  # the name of its one argument
    steps: tuple[Step, ...]
    roles: tuple[tuple[str, str], ...]  # of the block's modules: "called", "linear" (its weight is used), "bypassed"
    holds: Holds  # (block, x) -> the modules by path, or None
    options: Options
    traceable: bool = True  # into a graph: for every dtype and device

    @property
    def fused(self) -> Iterator[Step]:
        return (step for step in self.steps if step.op != "module")

    @property
    def drops(self) -> bool:
        return any(step.drops for step in self.steps)

    def with_torchs_dropout(self) -> Plan:
        return replace(self, steps=tuple(replace(step, drops=False) for step in self.steps))

    def run(self, modules: Modules, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step.run(modules, x)
        return x

    def trace(self, modules: Modules, x: Proxy) -> Proxy:
        """The same into a graph of torch.fx, which is run in either mode."""
        for step in self.steps:
            traced = replace(step, second="", between=())
            x = traced.run(modules, x)
            for path in (*step.between, *((step.second,) if step.second else ())):
                x = modules[path](x)
        return x

    def why_not(self, block: nn.Module, x: Tensor) -> str:
        """Why it does not hold for the block as it is, as a clause; empty if it does."""
        if self.holds(block, x) is not None:
            return ""
        for path, role in self.roles:
            module = block.get_submodule(path)
            if role != "called" and not is_unwatched(module):
                return f"{path} has a hook" if has_hooks(module) else f"{path} has a forward of its own"
        return "something watches all modules" if any_global_hooks() else "it changes while it is looked at"


def is_linear_like(module: Any) -> bool:
    """A Linear, or something that stands for one (quantised, with an adapter)."""
    return isinstance(module, nn.Linear) or is_conv1d(module) or hasattr(module, "base_layer")


def why_not_plain(path: str, module: nn.Module) -> str:
    if has_hooks(module):
        return f"{path} has a hook"
    if type(module) is nn.Linear or is_conv1d(module):
        return f"{path} has a weight of type {type(module.weight).__name__}, or a forward of its own"
    return f"{path} is a {type(module).__name__}, not a plain nn.Linear"


class _Line:
    """Walks a recording from its input to its result. Each method consumes the events that it understands."""

    def __init__(self, block: nn.Module, recording: Recording, asked: frozenset[str]) -> None:
        self.block = block
        self.recording = recording
        self.asked = asked
        self.computes: dict[int, Found] = {}  # by event
        self.consumers: dict[int, list[Event]] = defaultdict(list)
        for event in recording.events:
            for value in set(event.inputs):
                self.consumers[value].append(event)
        self.seen = 0
        self.casts = False
        self.by_width = False  # it takes x apart at a number that is of x's width
        self.its = f"its {recording.method}"  # of reasons
        self.reads: list[Read] = []  # of the activations

    def steps(self) -> Iterator[Step]:
        value = self.recording.source
        while value != self.recording.result or self.consumers[value]:
            step, value = self.step(value)
            if step is not None:
                yield step
        if self.seen != len(self.recording.events):
            raise NotUnderstood(f"{self.its} does more than one straight line")

    def step(self, value: int) -> tuple[Step | None, int]:
        events = self.consumers[value]
        if self.recording.result is None:
            raise NotUnderstood(f"{self.its} does not return one tensor")
        if self.parts_of(value):
            self.needs_width(value)
            return self.glu("", value)
        if len(events) == 2:
            return self.two_linears(events)
        if len(events) != 1:
            raise NotUnderstood(f"{self.its} holds more than an MLP")
        (event,) = events
        self.seen += 1
        if self.is_nothing(event):
            self.casts |= event.name != "contiguous"
            return None, event.outputs[0]
        found = self.found(event)
        if found and not found.why_not(self.asked):
            step = Step("bias_act", "", "", _activation_path(event), (self.take(event),))
            return self.with_bias(step), event.outputs[0]
        if event.kind != "module" or not event.simple:
            if found:
                raise NothingToFuse(found.why_not(self.asked))
            raise NotUnderstood(f"{self.its} calls {event.name}, which has no place in a straight line")
        if not is_linear_like(self.module(event)):
            return Step("module", event.name), event.outputs[0]
        return self.linear(event)

    def linear(self, event: Event) -> tuple[Step, int]:
        """A Linear, alone or with the activation of what it returns."""
        out = event.outputs[0]
        after = self.consumers[out]
        if len(after) == 1:
            found = self.found(after[0])
            if found and not found.why_not(self.asked):
                self.seen += 1
                step = Step("bias_act", event.name, "", _activation_path(after[0]), (self.take(after[0]),))
                return self.with_bias(step), after[0].outputs[0]
        return self.glu(event.name, out) if self.parts_of(out) else (Step("module", event.name), out)

    def parts_of(self, whole: int) -> list[int]:
        """The halves of a tensor, or its even and its odd columns, where nothing else becomes of it."""
        after = self.consumers[whole]
        if not any(
            all(is_part(event, self.recording) for event in after) for is_part in (_is_halves, _is_every_second)
        ):
            return []
        parts = sorted((part for event in after for part in event.outputs), key=self.offset)
        return parts if len(parts) == len(set(map(self.offset, parts))) == 2 else []

    def needs_width(self, whole: int) -> None:
        """Without a Linear, whose weight would say it."""
        if all(event.name == "chunk" or _is_open(event) for event in self.consumers[whole]):  # in two, of any width
            return
        if whole != self.recording.source:
            raise NotUnderstood(f"{self.its} takes a tensor apart at a number, and no weight says its width")
        self.by_width = True

    def glu(self, path: str, whole: int) -> tuple[Step, int]:
        """Two halves of one tensor, of a Linear or not, one of them through the activation, and their product."""
        halves = self.parts_of(whole)
        interleaved = _is_every_second(self.consumers[whole][0], self.recording)
        limits = between_limits(*halves, users=self.users, found=self.found)
        if limits:
            return self.with_limits(path, whole, limits, "interleaved" if interleaved else "first")
        if interleaved:
            raise NotUnderstood(f"{self.its} activates every second column")
        users = [self.only(half) for half in halves]
        first = self.first_is_activated(users, "the two halves")
        activated, product = users if first else users[::-1]
        self.is_product(product, activated.outputs[0], halves[1 if first else 0])
        self.seen += len(self.consumers[whole]) + 2
        names = (self.take(activated), "first" if first else "second")
        return self.with_bias(Step("glu", path, "", _activation_path(activated), names)), product.outputs[0]

    def with_limits(self, path: str, whole: int, limits: Limits, layout: str) -> tuple[Step, int]:
        if CLAMPED_SWIGLU.only not in self.asked:
            raise NothingToFuse(f"computes {ACTIVATIONS[CLAMPED_SWIGLU.only].label}, which was not asked for")
        source = self.recording.source
        first = next((event for event in self.recording.events if whole in event.outputs), None)
        if whole != source and first.inputs != (source,):
            raise NotUnderstood(f"{self.its} has limits that no input of the proof is sure to reach")
        self.seen += len(self.consumers[whole]) + len(limits.events)
        activation = limits.activation
        if activation:
            self.take(activation)
        names = (limits.alpha, limits.limit, limits.offset, layout)
        step = Step(CLAMPED_SWIGLU.name, path, "", _activation_path(activation) if activation else "", names)
        return self.with_bias(step), limits.result

    def users(self, value: int) -> list[Event]:
        """None of the result, which is more widely used."""
        return [] if value == self.recording.result else self.consumers[value]

    def two_linears(self, events: list[Event]) -> tuple[Step, int]:
        """Two Linears of one input, one of them through the activation, and their product."""
        if not all(event.kind == "module" and event.simple for event in events):
            names = " and ".join(event.name for event in events)
            raise NotUnderstood(f"{self.its} gives one value to {names}")
        users = [self.only(event.outputs[0]) for event in events]
        if not self.first_is_activated(users, "two Linears"):
            events, users = events[::-1], users[::-1]
        self.is_product(users[1], users[0].outputs[0], events[1].outputs[0])
        self.seen += 4
        step = Step("act_mul", events[0].name, events[1].name, _activation_path(users[0]), (self.take(users[0]),))
        return self.with_bias(step), users[1].outputs[0]

    def first_is_activated(self, users: list[Event], of: str) -> bool:
        """Of the two operands of a GLU, whose users these are; one of them has to be."""
        found = [self.found(user) for user in users]
        served = [f.activation in self.asked for f in found]
        if sum(served) == 1:
            return served[0]
        other = next((f for f in found if f and not served[0] and not served[1]), None)
        if other:
            raise NothingToFuse(other.why_not(self.asked))
        raise NotUnderstood(f"{self.its} does not activate one of {of}")

    def only(self, value: int) -> Event:
        if len(self.consumers[value]) != 1 or value == self.recording.result:
            raise NotUnderstood(f"{self.its} uses a half of the GLU in several places")
        return self.consumers[value][0]

    def is_product(self, event: Event, activated: int, linear: int) -> None:
        is_mul = event.kind == "function" and event.name in ("mul", "__mul__", "multiply", "__rmul__")
        same = is_mul and set(event.inputs) == {activated, linear} and len(event.inputs) == 2 and not event.options
        if not same or len(self.consumers[activated]) != 1:
            raise NotUnderstood(f"{self.its} calls {event.name} where a GLU has its product")

    def with_bias(self, step: Step) -> Step:
        """Takes the biases out of the Linears if those are plain."""
        if not step.firsts:
            return replace(step, why_not="no Linear before it")
        modules = {path: self.block.get_submodule(path) for path in step.firsts}
        for path, module in modules.items():
            if not linear_kind(module):
                return replace(step, why_not=why_not_plain(path, module))
        for path, module in modules.items():
            if module.bias is not None and module.bias.dtype not in (module.weight.dtype, torch.float32):
                return replace(step, why_not=f"{path}.bias is {module.bias.dtype}")
        if all(module.bias is None for module in modules.values()):
            return replace(step, why_not="none")
        return replace(step, takes_bias=True)

    def found(self, event: Event) -> Found:
        """The activation that the event computes, if it computes one. It is run for that, once."""
        if id(event) not in self.computes:
            self.computes[id(event)] = self._classified(event)
        return self.computes[id(event)]

    def _classified(self, event: Event) -> Found:
        if len(event.inputs) != 1 or len(event.outputs) != 1:
            return Found()
        if event.kind == "function":
            return classify_call(event.call, event.arguments, event.options)
        if not event.simple:
            return Found()
        if event.kind == "attribute":
            return classify(event.call)
        module = self.module(event)
        return Found() if module._modules or is_linear_like(module) else classify(module)

    def take(self, event: Event) -> str:
        """Its name, for a step; what it depends on is the plan's from now on."""
        found = self.found(event)
        self.reads += [_below(_activation_path(event), read) for read in found.reads]
        return found.activation or ""

    def module(self, event: Event) -> nn.Module:
        """The real one: the event's is the recorder's, under observation."""
        return self.block.get_submodule(event.name)

    def is_nothing(self, event: Event) -> bool:
        """A torch function that gave its argument back, such as a cast to the dtype that it has."""
        if event.kind != "function" or event.name not in ("to", "contiguous", "type_as", "float", "half", "bfloat16"):
            return False
        before, after = (self.recording.values[i] for i in (event.inputs[0], event.outputs[0]))
        return before.dtype == after.dtype and before.shape == after.shape and before.device == after.device

    def offset(self, value: int) -> int:
        return self.recording.values[value].storage_offset()


def _activation_path(event: Event) -> str:
    return event.name if event.kind == "module" else ""


def _is_halves(event: Event, recording: Recording) -> bool:
    """The event's results are halves of the last dimension of its one input (or one of them is, by slicing)."""
    if event.kind != "function" or len(event.inputs) != 1 or _names_a_dimension(event):
        return False
    whole, parts = recording.values[event.inputs[0]], [recording.values[i] for i in event.outputs]
    if len(parts) not in (1, 2) or whole.shape[-1] % 2 or whole.stride(-1) != 1:
        return False
    half = whole.shape[-1] // 2
    offsets = [part.storage_offset() - whole.storage_offset() for part in parts]
    return offsets in ([0, half], [0], [half]) and all(
        part.shape == (*whole.shape[:-1], half)
        and part.stride() == whole.stride()
        and part.untyped_storage()._cdata == whole.untyped_storage()._cdata
        for part in parts
    )


def _is_every_second(event: Event, recording: Recording) -> bool:
    """The event's result is every second column of its one input."""
    if event.kind != "function" or event.name != "__getitem__" or len(event.inputs) != 1 or _names_a_dimension(event):
        return False
    whole, part = recording.values[event.inputs[0]], recording.values[event.outputs[0]]
    return (
        whole.shape[-1] % 2 == 0
        and part.shape == (*whole.shape[:-1], whole.shape[-1] // 2)
        and part.stride() == (*whole.stride()[:-1], 2 * whole.stride(-1))
        and part.storage_offset() - whole.storage_offset() in (0, whole.stride(-1))
        and part.untyped_storage()._cdata == whole.untyped_storage()._cdata
    )


def _is_open(event: Event) -> bool:
    """Every second column to the end."""
    index = event.arguments[1] if event.name == "__getitem__" else None
    return isinstance(index, tuple) and index[-1] in (slice(None, None, 2), slice(0, None, 2), slice(1, None, 2))


def _names_a_dimension(event: Event) -> bool:
    """Whether it takes the last dimension by its number from the front: of another rank it is another one."""
    if event.name == "__getitem__":
        index = event.arguments[1]
        return isinstance(index, tuple) and ... not in index
    dim = event.options.get("dim", event.arguments[-1] if len(event.arguments) > 2 else 0)
    return not isinstance(dim, int) or dim >= 0


def make_plan(block: nn.Module, method: str, recordings: list[Recording], options: Options) -> Plan:
    """The plan of a block, recorded in training and in evaluation mode. Raises NotUnderstood with the reason."""
    steps, line = _steps(block, recordings[0], options)
    for recording in recordings[1:]:
        if _steps(block, recording, options)[0] != steps:
            raise NotUnderstood(f"{line.its} takes another way in training mode than in evaluation mode")
    reads = {read.key: read for recording in recordings for read in recording.reader.reads.values()}
    reads.update((read.key, read) for read in line.reads)
    modes = sorted({path for recording in recordings for path in recording.reader.modes})
    like = recordings[0].values[recordings[0].source]
    by_dtype = line.casts or any(recording.asks_dtype for recording in recordings)
    by_device = any(recording.asks_device for recording in recordings)
    roles = _roles(steps)
    halves = [step.path for step in steps if step.path and step.op != "module" and OPERATIONS[step.op].halves == 2]
    holds = make_guard(block, method, roles, reads.values(), modes, like, by_dtype, by_device, halves, line.by_width)
    kinds = {linear_kind(block.get_submodule(path)) for path, role in roles.items() if role == "linear"}
    traceable = not (by_dtype or by_device) and "conv1d" not in kinds  # whose weight is transposed, no parameter
    return Plan(method, argument_of(block, method), steps, tuple(roles.items()), holds, options, traceable)


def plan_of_activation(module: nn.Module, found: Found, options: Options) -> Plan:
    """The plan of an activation module that stands alone."""
    like = torch.empty((), device="cpu")
    holds = make_guard(module, "forward", {}, found.reads, (), like, False, False)
    steps = (Step("bias_act", names=(found.activation,)),)
    return Plan("forward", argument_of(module, "forward"), steps, (), holds, options)


def argument_of(block: nn.Module, method: str) -> str:
    """The name of the method's first argument; "" if it has none."""
    try:
        parameters = list(inspect.signature(getattr(type(block), method)).parameters.values())[1:]  # after self
    except (TypeError, ValueError):
        return ""
    named = parameters and parameters[0].kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    return parameters[0].name if named else ""


def _below(path: str, read: Read) -> Read:
    return read._replace(base=path) if read.base == "" else read


def _steps(block: nn.Module, recording: Recording, options: Options) -> tuple[tuple[Step, ...], _Line]:
    """The steps, and the line that they were found on."""
    if recording.odd:
        raise NotUnderstood(f"its {recording.method} {recording.odd}")
    line = _Line(block, recording, options.activations)
    steps = list(line.steps())
    if not any(step.op != "module" for step in steps):
        found = next(filter(None, (classify(block.get_submodule(step.path)) for step in steps)), None)
        if found:
            raise NothingToFuse(found.why_not(options.activations))
        raise NotUnderstood("it computes no activation")
    steps = [
        replace(step, recompute=options.recompute, tile_rows=options.tile_rows) if step.second else step
        for step in _with_what_follows(block, steps, options.dropout)
    ]
    return tuple(steps), line


def _roles(steps: tuple[Step, ...]) -> dict[str, str]:
    """What becomes of the modules of the block: "called", "linear" (its weight is used) or "bypassed"."""
    roles: dict[str, str] = {}
    for step in steps:
        used = step.firsts + ((step.second,) if step.second else ())
        role = "linear" if step.second or step.takes_bias else "called"
        roles |= dict.fromkeys(used, role) | dict.fromkeys(step.between, "bypassed")
        if step.activation_path:
            roles[step.activation_path] = "bypassed"
    parents = {path[:i] for path in roles for i, letter in enumerate(path) if letter == "."}
    return roles | dict.fromkeys(sorted(parents), "bypassed")


def _with_what_follows(block: nn.Module, steps: list[Step], dropout: bool) -> Iterator[Step]:
    """Puts the Linear after an activation into its step, where nothing but dropout stands between plain Linears.

    With ``dropout`` that becomes part of the operation, whatever follows it.
    """
    i = 0
    while i < len(steps):
        step = steps[i]
        end = i + 1
        while end < len(steps) and steps[end].op == "module" and _may_do_nothing(block.get_submodule(steps[end].path)):
            end += 1
        between = tuple(s.path for s in steps[i + 1 : end])
        drops = dropout and step.op != "module" and OPERATIONS[step.op].drops
        drops = drops and any(isinstance(block.get_submodule(path), nn.Dropout) for path in between)
        firsts = [block.get_submodule(path) for path in step.firsts]
        plain = step.op != "module" and OPERATIONS[step.op].mlp and firsts and all(map(linear_kind, firsts))
        last = steps[end] if end < len(steps) and steps[end].op == "module" else None
        if plain and last and linear_kind(block.get_submodule(last.path)):
            yield replace(step, between=between, second=last.path, drops=drops)
            i = end + 1
        elif drops:
            yield replace(step, between=between, drops=True)
            i = end
        else:
            yield step
            i += 1


def _may_do_nothing(module: nn.Module) -> bool:
    return type(module) in (nn.Identity, nn.Dropout)
