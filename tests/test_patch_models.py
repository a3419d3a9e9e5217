"""patch() on real model classes, small and random, nothing downloaded: the same loss and the same gradients.

Needs transformers, diffusers or timm; each test skips with the reason where its library is absent.
"""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from families import declare_torchvision_operators
from torch import nn

from gelu_ext import GELU, BiasAct, register_with_transformers
from gelu_ext._operations import OPERATIONS
from gelu_ext.patch import patch, unpatch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

_library = declare_torchvision_operators()  # declared as long as it lives

pytestmark = pytest.mark.usefixtures("one_thread_one_seed")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VISION = {"image_size": 16, "patch_size": 8}
TOKENS = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokens():
    return {"input_ids": torch.randint(3, 99, (2, 7))}


def image():
    return {"pixel_values": torch.randn(2, 3, 16, 16)}


def bert(t):
    return t.BertForMaskedLM(t.BertConfig(**SIZES, vocab_size=100)), tokens()


def vit(t):
    return t.ViTForImageClassification(t.ViTConfig(**SIZES, **VISION)), image()


def gpt2(t):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    return t.GPT2LMHeadModel(t.GPT2Config(**sizes, **TOKENS)), tokens()


def clip(t):
    return t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**SIZES, **VISION, projection_dim=16)), image()


def t5(t):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    config = t.T5Config(**sizes, vocab_size=100, decoder_start_token_id=0)
    ids = tokens()["input_ids"]
    return t.T5ForConditionalGeneration(config), {"input_ids": ids, "decoder_input_ids": ids}


def gemma(t):
    return t.GemmaForCausalLM(t.GemmaConfig(**SIZES, **TOKENS, num_key_value_heads=2, head_dim=8)), tokens()


def modernbert(t):
    config = t.ModernBertConfig(**SIZES, **TOKENS, cls_token_id=1, sep_token_id=2, attn_implementation="eager")
    return t.ModernBertForMaskedLM(config), tokens()


def bart(t):
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 64))}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return t.BartForConditionalGeneration(t.BartConfig(d_model=32, **sizes, **heads, **TOKENS)), tokens()


def decoder(name, **extra):
    """Of a name in transformers."""

    def make(t):
        sizes = {**SIZES, **TOKENS, "num_key_value_heads": 2, **extra}
        return getattr(t, f"{name}ForCausalLM")(getattr(t, f"{name}Config")(**sizes)), tokens()

    return make


DENSE_DEEPSEEK = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
DENSE_DEEPSEEK |= {"num_key_value_heads": 4, "first_k_dense_replace": 2}
SWIGLU, PACKED_SWIGLU = ({"gelu_mul": 2}, "act_mul_mlp"), ({"geglu": 2}, "glu_mlp")

# (model and inputs, operations with their number, the function that runs with recompute)
MODELS = {
    "BERT": (bert, {"bias_gelu": 3}, "bias_gelu"),  # its second Linear is in another module
    "ViT": (vit, {"bias_gelu": 2}, "mlp"),
    "GPT-2": (gpt2, {"bias_gelu": 2}, "mlp"),
    "CLIP": (clip, {"bias_gelu": 2}, "mlp"),
    "T5 v1.1": (t5, {"gelu_mul": 4}, "gelu_mul_mlp"),
    "Gemma": (gemma, {"gelu_mul": 2}, "gelu_mul_mlp"),
    "ModernBERT": (modernbert, {"geglu": 2, "bias_gelu": 1}, "geglu_mlp"),
    "BART": (bart, {"bias_gelu": 2}, "bias_gelu"),  # the activation alone: its layer holds attention too
    "Llama": (decoder("Llama"), *SWIGLU),
    "Mistral": (decoder("Mistral"), *SWIGLU),
    "Qwen2": (decoder("Qwen2"), *SWIGLU),
    "Qwen3": (decoder("Qwen3", head_dim=8), *SWIGLU),
    "OLMo-2": (decoder("Olmo2"), *SWIGLU),
    "SmolLM3": (decoder("SmolLM3"), *SWIGLU),
    "Granite": (decoder("Granite"), *SWIGLU),
    "DeepSeek-V3, dense": (decoder("DeepseekV3", **DENSE_DEEPSEEK), *SWIGLU),
    "Phi-3": (decoder("Phi3"), *PACKED_SWIGLU),
    "GLM-4": (decoder("Glm4", head_dim=8), *PACKED_SWIGLU),
    "Nemotron": (decoder("Nemotron"), {"bias_gelu": 2}, "mlp"),
    "Llama with ReLU": (decoder("Llama", hidden_act="relu"), *SWIGLU),
}


def step(model, inputs):
    model.zero_grad()
    torch.manual_seed(1)  # for dropout
    out = model(**inputs)
    out = out if isinstance(out, torch.Tensor) else out[0]
    loss = (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).square().mean()
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), out.detach(), grads


def assert_same(found, wanted):
    (loss, out, grads), (wanted_loss, wanted_out, wanted_grads) = found, wanted
    assert abs(loss - wanted_loss) <= 1e-5 * abs(wanted_loss)
    assert (out - wanted_out).abs().max() <= 1e-5 * wanted_out.abs().max()
    assert grads.keys() == wanted_grads.keys()
    largest = max(grad.abs().max() for grad in wanted_grads.values())
    for name, grad in wanted_grads.items():  # some, such as a key's bias, are zero but for rounding
        assert (grads[name] - grad).abs().max() <= 2e-5 * max(grad.abs().max(), 0.05 * largest), name


def check(model, inputs, expected, with_recompute, calls):
    for training in (True, False):
        model.train(training)
        wanted, keys = step(model, inputs), [*model.state_dict()]
        for recompute in (False, True):
            report = patch(model, recompute=recompute)
            assert not report.left_alone, report
            assert len(report.fused) == sum(expected.values())
            assert not recompute or with_recompute in {row.op for row in report.fused}, report
            calls.clear()
            assert_same(step(model, inputs), wanted)
            assert all(calls[op] >= n for op, n in expected.items()), (calls, report)
            assert [*model.state_dict()] == keys
        unpatch(model)
        calls.clear()
        again = step(model, inputs)
        assert again[0] == wanted[0] and all(torch.equal(g, wanted[2][name]) for name, g in again[2].items())
        assert not calls


@pytest.mark.parametrize("name", MODELS)
def test_transformers(name, calls):
    transformers = pytest.importorskip("transformers")
    make, expected, with_recompute = MODELS[name]
    check(*make(transformers), expected, with_recompute, calls)


@pytest.mark.parametrize("name", ["ViT", "T5 v1.1", "ModernBERT", "Llama", "Phi-3"])
def test_transformers_in_bfloat16(name, calls):
    transformers = pytest.importorskip("transformers")
    make, expected, _ = MODELS[name]
    model, inputs = make(transformers)
    model.bfloat16().eval()
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    before = model(**inputs)[0]
    report = patch(model)
    assert not report.left_alone, report
    after = model(**inputs)[0]
    assert after.dtype == torch.bfloat16
    assert (after - before).abs().max() <= 0.05 * before.abs().max()
    assert all(calls[op] >= n for op, n in expected.items())


def opt(t):
    sizes = {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
    return decoder("OPT", **sizes)(t)[0]


def t5_v1_0(t):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "feed_forward_proj": "relu"}
    return t.T5ForConditionalGeneration(t.T5Config(**sizes, vocab_size=100, decoder_start_token_id=0))


def llama_with_leaky_relu(t):
    return decoder("Llama", hidden_act="leaky_relu")(t)[0]


@pytest.mark.parametrize("make", [opt, t5_v1_0, llama_with_leaky_relu])
def test_transformers_that_would_gain_nothing_or_have_no_kernel_stay(make):
    transformers = pytest.importorskip("transformers")
    model = make(transformers)
    before = {module: type(module) for module in model.modules()}
    report = patch(model, recompute=True)
    assert not report and len(report.left_alone) == 2, report
    label = "LeakyReLU" if make is llama_with_leaky_relu else "ReLU"
    assert {row.reason.split(",")[0] for row in report.left_alone} == {f"computes {label}"}
    assert before == {module: type(module) for module in model.modules()}


EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
EXPERTS |= {"shared_expert_intermediate_size": 16}


MIXTURES = {
    "Mixtral": {},
    "Qwen2Moe": {},
    "Qwen3Moe": {"head_dim": 8},
    "DeepseekV3": {**DENSE_DEEPSEEK, "first_k_dense_replace": 0, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "GptOss": {"head_dim": 8},
    "NemotronH": {
        "head_dim": 8,
        "layers_block_type": ["moe", "attention"],
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
    },
}
IN_ONE_TENSOR = "the weights of its experts are one tensor, not Linears"
SPELT_OUT = f"{IN_ONE_TENSOR}; its forward spells the gate out"


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_in_one_tensor(name, experts, calls):
    """Their gate runs fused where it is a method, else the activation alone; a shared expert is an MLP."""
    transformers = pytest.importorskip("transformers")
    model, inputs = decoder(name, **EXPERTS, **MIXTURES[name])(transformers)
    model.set_experts_implementation(experts)
    wanted = step(model, inputs)
    report = patch(model)
    rows = [(row.op, row.note) for row in report.fused if ".experts" in row.block]
    limits = "clamped_swiglu" in OPERATIONS
    if name == "GptOss" and limits:
        assert rows == [("clamped_swiglu", "no Linear before it")] * 2, report
    elif name == "GptOss":
        assert not rows and all(row.reason.startswith(IN_ONE_TENSOR) for row in report.left_alone), report
    elif name == "NemotronH":  # without a gate
        assert rows == [("bias_act", IN_ONE_TENSOR)], report
    elif experts == "eager":
        assert rows == [("bias_act", SPELT_OUT)] * 2, report
    else:
        assert rows == [("swiglu", "no Linear before it")] * 2, report
    assert len(report.left_alone) == 2 * (name == "GptOss" and not limits)
    calls.clear()
    assert_same(step(model, inputs), wanted)
    assert calls["geglu"] == sum(op == "swiglu" for op, _ in rows)
    unpatch(model)
    again = step(model, inputs)
    assert again[0] == wanted[0] and all(torch.equal(g, wanted[2][name]) for name, g in again[2].items())


def test_a_configuration_that_lies():
    """SiLU put where the configuration says gelu: the module decides."""
    transformers = pytest.importorskip("transformers")
    model, _ = bert(transformers)
    for module in model.modules():
        if hasattr(module, "intermediate_act_fn"):
            module.intermediate_act_fn = nn.SiLU()
    assert sorted(row.form for row in patch(model).fused) == ["SiLU", "SiLU", "exact (erf)"]


def test_transformers_save_load_and_pickle(tmp_path, calls):
    transformers = pytest.importorskip("transformers")
    model, inputs = gpt2(transformers)
    model.eval()
    patch(model)
    wanted = model(**inputs)[0]
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()(**inputs)[0], wanted)
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other(**inputs)[0], wanted)  # the first call plans its blocks again
    calls.clear()
    assert torch.equal(other(**inputs)[0], wanted)
    assert calls["bias_gelu"] == 2


def test_gradient_checkpointing_of_transformers(calls):
    transformers = pytest.importorskip("transformers")
    model, inputs = vit(transformers)
    model.train()
    wanted = step(model, inputs)
    patch(model, recompute=True)
    model.gradient_checkpointing_enable()
    assert_same(step(model, inputs), wanted)
    assert calls["bias_gelu"] > 2


def test_table_of_activations_of_transformers():
    transformers = pytest.importorskip("transformers")
    table = transformers.activations.ACT2FN
    before = {name: type(table[name]) for name in table if "xielu" not in name}
    undo = register_with_transformers()
    try:
        gelus = {name: table[name].approximate for name in before if isinstance(table[name], GELU)}
        assert gelus["gelu"] == "none" and gelus["quick_gelu"] == "sigmoid"
        assert {gelus[name] for name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_accurate")} == {"tanh"}
        others = {name: table[name].activation for name in before if isinstance(table[name], BiasAct)}
        assert others == {"silu": "silu", "swish": "silu", "mish": "mish", "relu2": "relu2"}  # which gain something
        served = [*gelus, *others]
        assert "gelu_10" not in served
        x = torch.randn(100, dtype=torch.float64)
        for name in served:
            torch.testing.assert_close(table[name](x), before[name]()(x), rtol=1e-6, atol=1e-6)
        model, _ = vit(transformers)
        assert sum(isinstance(module, GELU) for module in model.modules()) == 2
        assert [row.bias for row in patch(model).fused] == ["fused"] * 2
        model, _ = decoder("Llama")(transformers)
        assert [row.op for row in patch(model).fused] == ["silu_mul"] * 2
    finally:
        undo()
    assert {name: type(table[name]) for name in before} == before


@pytest.mark.parametrize("activation", ["gelu", "gelu-approximate", "geglu", "geglu-approximate", "swiglu"])
def test_diffusers_feed_forward(activation, calls):
    attention = pytest.importorskip("diffusers.models.attention")
    block = attention.FeedForward(16, activation_fn=activation, dropout=0.1)
    op = "geglu" if activation in ("geglu", "swiglu") else "bias_gelu"
    forms = {"gelu": "exact (erf)", "gelu-approximate": "tanh", "geglu": "exact (erf), second half"}
    form = {**forms, "swiglu": "SiLU, second half"}.get(activation)
    inputs = {"hidden_states": torch.randn(2, 5, 16)}
    if form is None:  # x * sigmoid(1.702 * x) written out in a forward: no activation to find
        assert not patch(block)
        return
    wanted = step(block, inputs)
    for recompute in (False, True):
        report = patch(block, recompute=recompute)
        assert [row.form for row in report.fused] == [form] and report.fused[0].bias == "fused", report
        calls.clear()
        assert_same(step(block, inputs), wanted)
        assert calls[op]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_timm(name, calls):
    timm = pytest.importorskip("timm")
    sizes = {
        "vit_tiny_patch16_224": {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2},
        "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)},
    }
    model = timm.create_model(name, num_classes=5, **sizes[name]).eval()
    inputs = {"x": torch.randn(2, 3, 64, 64)}
    wanted = step(model, inputs)
    report = patch(model)
    assert len(report.fused) >= 2 and not report.left_alone, report
    calls.clear()
    assert_same(step(model, inputs), wanted)
    assert calls["bias_gelu"] == len(report.fused)
    if "vit" in name:
        assert {row.bias for row in report.fused} == {"fused"}
        assert {row.op for row in patch(model, recompute=True).fused} == {"mlp"}


@pytest.mark.parametrize("gate_last", [True, False])
def test_timm_glu(gate_last, calls):
    layers = pytest.importorskip("timm.layers")
    block = layers.GluMlp(16, 48, act_layer=nn.GELU, gate_last=gate_last, drop=0.1)
    inputs = {"x": torch.randn(2, 5, 16)}
    wanted = step(block, inputs)
    (row,) = patch(block).fused
    assert row.form == f"exact (erf), {'second' if gate_last else 'first'} half" and row.bias == "fused"
    assert_same(step(block, inputs), wanted)
    assert calls["geglu"]


@pytest.mark.parametrize("layer", ["SwiGLU", "SwiGLUPacked"])
def test_timm_swiglu(layer, calls):
    """The packed one with a norm before its second Linear, as in EVA-02."""
    layers = pytest.importorskip("timm.layers")
    block = (
        layers.SwiGLU(16, 48, drop=0.1) if layer == "SwiGLU" else layers.SwiGLUPacked(16, 48, norm_layer=nn.LayerNorm)
    )
    inputs = {"x": torch.randn(2, 5, 16)}
    wanted = step(block, inputs)
    (row,) = patch(block).fused
    assert row.form == ("SiLU" if layer == "SwiGLU" else "SiLU, first half") and row.bias == "fused"
    assert row.op == ("silu_mul" if layer == "SwiGLU" else "swiglu")
    assert_same(step(block, inputs), wanted)
