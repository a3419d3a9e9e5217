"""The recipes of CONTRIBUTING.md hold: an activation and an operation are added in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREE = (
    "csrc",
    "gelu_ext",
    "tests",
    "bench",
    "examples",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
    "Makefile",
)


def files_of(recipe: str) -> list[str]:
    """Those that the recipe's numbered steps name first."""
    text = (ROOT / "CONTRIBUTING.md").read_text().split(f"### {recipe}\n")[1].split("\n### ")[0].split("\n## ")[0]
    return re.findall(r"^\d+\. `([\w/.]+)`", text, re.MULTILINE)


class Copy:
    """A copy of the tree, in which every change is written down."""

    def __init__(self, path: Path) -> None:
        self.path, self.changed = path, {}
        for name in TREE:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.so", "results")
                shutil.copytree(source, path / name, ignore=ignored)
            else:
                shutil.copy(source, path / name)

    def insert(self, file: str, before: str, text: str) -> None:
        """Writes text before the one place where `before` stands."""
        content = (self.path / file).read_text()
        assert content.count(before) == 1, f"{before!r} stands {content.count(before)} times in {file}"
        (self.path / file).write_text(content.replace(before, text + before))
        self.changed[file] = self.changed.get(file, 0) + text.count("\n")

    def run(self, *command: str) -> str:
        variables = {"PYTHONPATH": str(self.path), "MAX_JOBS": "2", "GELU_EXT_CUDA": "0", "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [sys.executable, *command], cwd=self.path, env=variables, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def build(self) -> None:
        self.run("setup.py", "-q", "build_ext", "--inplace")


ACTIVATION = """
// A gate for a test.
struct Steep : SigmoidGate<LinearArgument<Steep>> {
  static constexpr const char* name = "steep";
  static constexpr double kLinear = 1.5;
};

"""
ROW = """    Activation(
        "steep",
        "steep",
        "z sigmoid(1.5 z)",
        "a test",
        lambda z: z * torch.sigmoid(1.5 * z),
        _saturating(lambda z: z * torch.sigmoid(1.5 * z), 90.0, 520.0),
    ),
"""


@pytest.mark.slow
def test_an_activation(tmp_path):
    """Its files are those of the recipe; what reads the tables then tests it, without a word about it anywhere."""
    copy = Copy(tmp_path)
    copy.insert("csrc/activations.h", "template <class... Acts>\nstruct ActivationList", ACTIVATION.lstrip())
    copy.insert("csrc/activations.h", ">;\n\n// Value, slope and both", ", Steep")
    copy.insert("gelu_ext/_activations.py", ")\nACTIVATIONS:", ROW)
    copy.insert("tests/reference.py", "}\nACTIVATIONS =", '    "steep": _gate(1.5),\n')
    truth = '    {"steep", [](R x) { return gate<R>(x, R(1.5L) * x, R(1.5L)); }},\n'
    copy.insert("tests/native/truth.h", "};\n\ntemplate <class R>\nconstexpr const TruthRow", truth)
    by_a_command = ["tests/cuda/budgets.json", "bench/results/cuda_budgets.md"]  # they need the CUDA toolkit
    assert [*copy.changed, *by_a_command] == files_of("An activation")
    copy.build()
    copy.run("tests/native/run_accuracy.py")
    copy.run("-m", "pytest", "-q", "-x", "tests/test_operations.py", "tests/test_modules.py", "tests/test_errors.py")
    told = copy.run("-m", "pytest", "-q", "-k", "steep", "tests", "--ignore=tests/test_recipes.py")
    passed = int(re.search(r"(\d+) passed", told)[1])
    assert passed > 150, told[-500:]
    copy.run("bench/bench.py", "--device=cpu", "--activations=steep", "--shapes=8x32", "--rounds=2", "--seconds=0.001")


OPERATION = """
// act(z0) (z1 + factor z2) scale, with a scale along the columns: for a test
struct Toy {
  static constexpr int operands = 3, matrices = 3, vectors = 4, parameters = 1;
  using Only = void;

  template <class F, class In>
  static GELU_EXT_FN auto value(const In& in) {
    const auto activated = F::value(in.z(Index<0>()));
    return product(activated, mul_add(in.parameter(Index<0>()), in.z(Index<2>()), in.z(Index<1>()))) *
           in.vector(Index<3>());
  }

  template <class F, class In>
  static GELU_EXT_FN auto gradients(const In& in) {
    const auto activated = F::value_and_slope(in.z(Index<0>()));
    const auto factor = in.parameter(Index<0>()), scale = in.vector(Index<3>()), grad_out = in.grad_out();
    const auto gate = mul_add(factor, in.z(Index<2>()), in.z(Index<1>())), grad = grad_out * scale;
    const auto by_gate = product(grad, activated.value);
    return Terms<typename F::T, 4>{{product(grad * gate, activated.slope), by_gate, factor * by_gate,
                                    product(grad_out * gate, activated.value)}};
  }
};

"""
DECLARATION = """
// act(a) * (b + factor * c) * scale, for a test
Tensor toy(const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& scale, std::string_view activation,
           double factor);
std::tuple<Tensor, Tensor, Tensor, Tensor> toy_backward(const Tensor& grad_out, const Tensor& a, const Tensor& b,
                                                        const Tensor& c, const Tensor& scale,
                                                        std::string_view activation, double factor,
                                                        std::array<bool, 4> needs);
void check_toy(const char* op, const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& scale,
               std::string_view activation, double factor);

"""
DEFINITION = """
namespace {

Layout three(const Tensor& a, double factor) {
  return {Operations::index<Toy>(), width_of(a), {{0}, {1}, {2}}, {{}, {}, {}, {3}}, {factor}};
}

}  // namespace

void check_toy(const char* op, const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& scale,
               std::string_view activation, double) {
  activation_index(op, activation);
  if (any_symbolic(&a, &b, &c, &scale)) return;
  check_tensor(op, "a", a);
  check_like(op, "b", b, "a", a);
  check_like(op, "c", c, "a", a);
  check_bias(op, "scale", scale, "a", a);
}

Tensor toy(const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& scale, std::string_view activation,
           double factor) {
  check_toy("toy", a, b, c, scale, activation, factor);
  return Call<4>("toy", three(a, factor), activation, {&a, &b, &c, &scale}).forward(a.sizes());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> toy_backward(const Tensor& grad_out, const Tensor& a, const Tensor& b,
                                                        const Tensor& c, const Tensor& scale,
                                                        std::string_view activation, double factor,
                                                        std::array<bool, 4> needs) {
  check_toy("toy", a, b, c, scale, activation, factor);
  check_grad("toy", grad_out, a.sizes(), a);
  return Call<4>("toy", three(a, factor), activation, {&a, &b, &c, &scale}).backward(grad_out, needs);
}

"""
COMPOSITE = """def toy(a: Tensor, b: Tensor, c: Tensor, scale: Tensor, activation: str, factor: float) -> Tensor:
    gate = _widened(b) + factor * _widened(c)
    return (ACTIVATIONS[activation].composite(_widened(a)) * gate * _widened(scale)).to(a.dtype)


"""
EAGER = """def toy(a: Tensor, b: Tensor, c: Tensor, scale: Tensor, activation: str, factor: float) -> Tensor:
    return ACTIVATIONS[activation].eager(a) * (b + factor * c) * scale


"""
FUNCTION = '''def toy(
    a: Tensor, b: Tensor, c: Tensor, scale: Tensor, *, activation: str, factor: float = 0.5
) -> Tensor:
    """``act(a) * (b + factor * c) * scale``, for a test."""
    return CALLS["toy"]("toy", a, b, c, scale, activation, factor)


'''
TEST = """
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
import gelu_ext
from gelu_ext import functional
from gelu_ext._composite import toy as composite

def tensors(dtype, rows=37, cols=23):
    torch.manual_seed(0)
    shapes = [(rows, cols)] * 3 + [(cols,)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]

toy = lambda *t: functional.toy(*t, activation="gelu_tanh", factor=0.75)
assert gradcheck(toy, tensors(torch.float64, 3, 4), check_batched_grad=True, check_forward_ad=True)
assert gradgradcheck(toy, tensors(torch.float64, 3, 4))
for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
    for rows, cols in ((37, 23), (300, 520), (5, 1)):
        ours = tensors(dtype, rows, cols)
        truth = [t.detach().double().requires_grad_() for t in ours]
        out, expected = toy(*ours), composite(*truth, "gelu_tanh", 0.75)
        grad = torch.randn(out.shape, dtype=torch.float64)
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
        grads = torch.autograd.grad(out, ours, grad.to(dtype))
        for got, want in zip(grads, torch.autograd.grad(expected, truth, grad.to(dtype).double())):
            torch.testing.assert_close(got.double(), want, rtol=10 * tolerance, atol=10 * tolerance * rows ** 0.5)
t = tensors(torch.float32)
compiled = torch.compile(toy, fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(*t), toy(*t))
batched = vmap(toy, (0, 0, 0, None))(*(x[None] for x in t[:3]), t[3])[0]
torch.testing.assert_close(batched, toy(*t))
meta = toy(*(x.to("meta") for x in t))
assert meta.shape == t[0].shape
for wrong, words in (
    ((t[0], t[1][:3], t[2], t[3]), "toy: expected b of the shape of a, [37, 23], got [3, 23]"),
    ((t[0], t[1], t[2], t[3][:3]), "toy: expected scale of shape [23], got [3]"),
):
    try:
        toy(*wrong)
    except ValueError as error:
        assert str(error) == words, error
    else:
        raise AssertionError(words)
print("right")
"""


@pytest.mark.slow
def test_an_operation(tmp_path):
    """Of three operands, a vector of its own and a parameter; its files are those of the recipe."""
    copy = Copy(tmp_path)
    copy.insert("csrc/operations.h", "// The list", OPERATION.lstrip())
    copy.insert("csrc/operations.h", ">;\n\n}  // namespace gelu_ext", ", Toy")
    copy.insert("csrc/ops.h", "// Gradients of the above", DECLARATION.lstrip())
    copy.insert("csrc/ops.cpp", "Tensor bias_act(const Tensor& x", DEFINITION.lstrip())
    copy.insert(
        "csrc/bindings.cpp",
        "};\n\ntemplate <class F>\nvoid for_each_operation",
        '    Operation{"toy", "Tensor a, Tensor b, Tensor c, Tensor scale, str activation, float factor", toy,\n'
        "              toy_backward, check_toy},\n",
    )
    copy.insert("gelu_ext/_composite.py", "def vjp(", COMPOSITE)
    copy.insert("gelu_ext/_eager.py", "def act_mul(", EAGER)
    row = 'TOY = Operation("toy", ("a", "b", "c"), ("scale",), ("activation", "factor"), '
    row += "_composite.toy, _eager.toy)\n"
    copy.insert("gelu_ext/_operations.py", "OPERATIONS: dict", row)
    copy.insert("gelu_ext/_operations.py", ")}", ", TOY")
    copy.insert("gelu_ext/functional.py", "def elementwise(", FUNCTION)
    assert list(copy.changed) == files_of("An operation")
    copy.build()
    assert copy.run("-c", TEST) == "right\n"
    copy.run("-c", "from gelu_ext import _selftest; assert any(case.op.name == 'toy' for case in _selftest.cases())")
    copy.run("-m", "gelu_ext")  # fails where a case does
