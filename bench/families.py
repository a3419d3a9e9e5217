"""How much of the transformers library patch() reaches: every architecture whose configuration names an activation.

Each model is built small from its configuration, with random weights (nothing is downloaded), patched, and the share of
its activations that run fused is printed, with the reasons for the rest. `python bench/families.py [name ...]`.
Needs transformers. What is no MLP activation (after a convolution, in a pooler) counts too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from gelu_ext.patch import patch

SECONDS = 60  # for one architecture
MOST_PARAMETERS = 60_000_000
# Every size that configurations have a name for; what a configuration lacks is skipped.
SMALL = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "embed_dim", "encoder_hidden_size", "emb_dim"], 32),
    **dict.fromkeys(["intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim"], 64),
    **dict.fromkeys(["n_inner", "encoder_intermediate_size", "mlp_dim", "d_inner", "ffn_hidden_size"], 64),
    **dict.fromkeys(["num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"], 2),
    **dict.fromkeys(["num_decoder_layers", "num_encoder_layers", "depth"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "num_key_value_heads"], 4),
    **dict.fromkeys(["head_dim", "d_kv", "attention_head_size"], 8),
    **dict.fromkeys(["vocab_size", "max_position_embeddings", "n_positions"], 512),
    **dict.fromkeys(["image_size", "img_size"], 32),
    "patch_size": 8,
    "embedding_size": 32,
    "num_experts": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class TooSlow(Exception):
    pass


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlow(f"took more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def declare_torchvision_operators() -> Any:
    """A torchvision built for CUDA does not import beside a CPU torch for want of two schemas."""
    try:
        import torchvision  # noqa: F401 (one that fits declares them itself, and may not find them declared)
    except RuntimeError:
        pass
    except ImportError:
        return None
    else:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def configurations_in(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None:
            yield from configurations_in(part)


def says_activation(config: Any, known: Any) -> bool:
    values = (v for part in configurations_in(config) for k, v in part.to_dict().items() if "act" in k or "proj" in k)
    return any(isinstance(v, str) and v.removeprefix("gated-") in known for v in values)


def shrink(config: Any) -> None:
    for part in configurations_in(config):
        for name, value in SMALL.items():
            if isinstance(getattr(part, name, None), int):
                with contextlib.suppress(Exception):
                    setattr(part, name, value)
        layers = getattr(part, "layer_types", None)
        if isinstance(layers, list):
            part.layer_types = layers[:2]


def build(config: Any, factories: list[Any]) -> torch.nn.Module:
    """The first class that takes the configuration; as small as it can be made."""
    error: Exception = RuntimeError("no model class takes it")
    for factory in factories:
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in factory.from_config(config).parameters())
            if size > MOST_PARAMETERS:
                raise RuntimeError(f"still has {size // 1_000_000} million parameters")
            return factory.from_config(config)
        except (TooSlow, KeyboardInterrupt):
            raise
        except Exception as why:
            if "Unrecognized configuration class" not in str(why):
                error = why
    raise error


def try_family(name: str, transformers: Any) -> Any:
    """The report; None if the configuration says nothing of an activation."""
    config = transformers.CONFIG_MAPPING[name]()
    if not says_activation(config, transformers.activations.ACT2FN):
        return None
    shrink(config)
    names = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageClassification")
    return patch(build(config, [getattr(transformers, name) for name in names]))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("names", nargs="*", help="architectures; all if none are given")
    arguments.add_argument("--most", type=int, default=10**6, help="stop after so many that could be built")
    options = arguments.parse_args()
    library = declare_torchvision_operators()
    try:
        import transformers
    except ImportError as error:
        raise SystemExit(f"families: expected transformers to be installed, got {error}") from error
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)

    totals, reasons, unbuilt = Counter(), Counter(), []
    print(f"{'architecture':28} {'fused':>9} {'in blocks':>9} {'bias':>5}  s   not more because")
    for name in options.names or sorted(transformers.CONFIG_MAPPING):
        if totals["built"] >= options.most:
            break
        start = time.perf_counter()
        try:
            with at_most(SECONDS), contextlib.redirect_stderr(io.StringIO()):
                report = try_family(name, transformers)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            unbuilt.append(f"{name}: {type(error).__name__}: {lines[0][:90]}")
            continue
        if report is None:
            continue
        not_served = sum(row.reason.startswith("computes") for row in report.left_alone)
        found, fused = len(report.fused) + len(report.left_alone) - not_served, len(report.fused)
        blocks = sum(not row.note or row.bias != "kept" for row in report.fused)
        bias = sum(row.bias == "fused" for row in report.fused)
        why = Counter([row.note for row in report.fused if row.note] + [row.reason for row in report.left_alone])
        reasons.update(why)
        totals.update(built=1, found=found, fused=fused, blocks=blocks, bias=bias, all=found == fused)
        text = "; ".join(f"{n} x {reason}" for reason, n in why.most_common(2))
        seconds = time.perf_counter() - start
        print(f"{name:28} {fused:4}/{found:<4} {blocks:9} {bias:5} {seconds:3.0f}  {text[:110]}", flush=True)
    print(
        f"\n{totals['built']} architectures built; in {totals['all']} of them every activation that is served is fused"
    )
    shares = f"{totals['fused']} fused, {totals['blocks']} as blocks, {totals['bias']} with the bias"
    print(f"of {totals['found']} activations {shares}")
    print("\nreasons for the rest:")
    for reason, n in reasons.most_common():
        print(f"  {n:4} x {reason}")
    print(f"\n{len(unbuilt)} could not be built small:", *unbuilt, sep="\n  ")
    del library


if __name__ == "__main__":
    main()
