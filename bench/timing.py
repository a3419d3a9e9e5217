"""Timing that two machines' noise cannot fool: contenders take turns, medians are compared within one run."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import torch


@dataclasses.dataclass(frozen=True)
class Timing:
    median: float  # seconds per call
    low: float  # the quartiles of the rounds
    high: float

    def of_one_of(self, count: int) -> Timing:
        """Where a call was ``count`` calls."""
        return Timing(self.median / count, self.low / count, self.high / count)


def _calls_per_round(call: Callable[[], object], device: torch.device, seconds: float) -> int:
    call()  # compiles, allocates, warms up
    calls = 1
    while True:
        taken = _time(call, calls, device)
        if taken * 4 > seconds or calls > 1_000_000:
            return max(1, round(calls * seconds / max(taken, 1e-9)))
        calls *= 4


def _time(call: Callable[[], object], calls: int, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3
    start_time = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start_time


def alternate(
    calls: dict[str, Callable[[], object]],
    *,
    device: torch.device | str = "cpu",
    rounds: int = 9,
    seconds: float = 0.02,
) -> dict[str, Timing]:
    """Times every contender in turn, `rounds` times about `seconds` each; seconds per call of each."""
    device = torch.device(device)
    counts = {name: _calls_per_round(call, device, seconds) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_time(call, counts[name], device) / counts[name])
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return Timing(median, low, high)


# --- on a GPU ---------------------------------------------------------------------------------------------------------


def captured(calls: Sequence[Callable[[], object]], count: int) -> Callable[[], object]:
    """A CUDA graph of ``count`` calls that take turns, replayed by one call: the device's time without the host's.

    The current stream must not be the default one. Each call writes where no other does.
    """
    stream = torch.cuda.current_stream()
    for _ in range(3):
        for call in calls:
            call()  # compiles, loads kernels, allocates
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = [calls[i % len(calls)]() for i in range(count)]
    del results
    return graph.replay


def host_seconds(call: Callable[[], object], calls: int = 200, rounds: int = 7) -> float:
    """What a call takes before it returns, while the device has other work: the median."""
    taken = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        taken.append((time.perf_counter() - start) / calls)
    return statistics.median(taken)
