"""What patch() did, as data that prints as a table."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fused:
    """One activation that now runs fused."""

    block: str  # path of the patched module in the model, with its method where that is not forward
    form: str  # the activation's label, "exact (erf)", "SiLU", and the activated half of a packed GLU
    op: str  # the function of gelu_ext that runs
    bias: str  # "fused", "kept" in its Linear, or "none"
    bytes_before: int  # what autograd keeps of the block, per token
    bytes_after: int
    activation: str = ""  # its name
    activated: str = ""
    note: str = ""  # why not more of it is fused


@dataclass(frozen=True)
class LeftAlone:
    """One activation that is as it was."""

    block: str
    what: str
    reason: str


@dataclass
class Report:
    """What is fused and what was left alone, and why. Prints as a table; true if anything is fused."""

    fused: list[Fused] = field(default_factory=list)
    left_alone: list[LeftAlone] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.fused)

    def __str__(self) -> str:
        total = len(self.fused) + len(self.left_alone)
        with_bias = sum(row.bias == "fused" for row in self.fused)
        lines = [f"gelu_ext: {len(self.fused)} of {total} activations fused, {with_bias} of them with the bias"]
        if self.fused:
            head = ("block", "form", "fused as", "bias", "bytes kept per token", "")
            lines += _table([head, *map(_cells, self.fused)])
        if self.left_alone:
            lines += ["left alone:", *_table([(row.block, row.what, row.reason) for row in self.left_alone])]
        return "\n".join(lines)

    __repr__ = __str__


def _cells(row: Fused) -> tuple[str, ...]:
    return row.block, row.form, row.op, row.bias, f"{row.bytes_before} -> {row.bytes_after}", row.note


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
