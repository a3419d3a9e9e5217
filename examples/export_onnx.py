"""A patched model leaves for ONNX: its graph holds ONNX's own operators, and onnxruntime computes what torch did.

    python examples/export_onnx.py

torch.onnx.export needs no help: it finds torch's own functions in the place of the fused ones. The batch is dynamic.
Exits with 1 if nothing was fused, if an operator of gelu_ext is left in the graph, or if a result differs.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gelu_ext

try:
    import onnxruntime
    import onnxscript  # noqa: F401 (torch.onnx.export(dynamo=True) imports it)
except ImportError as error:
    print(f"export_onnx: skipped, it needs onnxscript and onnxruntime: {error}")
    sys.exit(0)

WIDTH = 64
TOLERANCE = 1e-5  # of numbers around 1, in float32


class GatedMLP(nn.Module):
    """Linear -> GeGLU -> Linear, as in diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 8 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, -1)
        return self.fc2(a * F.gelu(b))


def main() -> int:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU("tanh"), nn.Linear(4 * WIDTH, WIDTH))
    model = nn.Sequential(nn.LayerNorm(WIDTH), mlp, nn.LayerNorm(WIDTH), GatedMLP()).eval()
    batches = [torch.randn(rows, WIDTH) for rows in (5, 1, 33)]
    with torch.no_grad():
        unpatched = [model(x) for x in batches]
    report = gelu_ext.patch(model)
    print(report)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        program = torch.onnx.export(
            model, (batches[0],), dynamo=True, opset_version=20, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            verbose=False,
        )  # fmt: skip
        program.save(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in program.model_proto.graph.node)
    foreign = sorted({node.domain for node in program.model_proto.graph.node} - {"", "ai.onnx"})
    print("operators:", ", ".join(f"{count} {name}" for name, count in operators.items()))

    wrong = [] if len(report.fused) == 2 and not report.left_alone else ["an activation is not fused"]
    if operators["Gelu"] != 2:
        wrong.append(f"expected two Gelu in the graph, got {operators['Gelu']}")
    if foreign:
        wrong.append(f"expected ONNX's own operators, got some of {', '.join(foreign)}")
    with torch.no_grad():
        for x, eager in zip(batches, unpatched, strict=True):
            (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            apart = [(torch.from_numpy(found) - truth).abs().max().item() for truth in (model(x), eager)]
            print(f"{len(x):2} rows: onnxruntime is {apart[0]:.1e} from the patched model, {apart[1]:.1e} from before")
            if not max(apart) <= TOLERANCE:
                wrong.append(f"{len(x)} rows differ by {max(apart):.1e}")
    print(f"FAILED: {'; '.join(wrong)}" if wrong else "OK: the same numbers without gelu_ext")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
