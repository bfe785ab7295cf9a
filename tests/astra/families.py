"""Tiny random models of many families, each with the targets one would adapt: `FAMILIES[name]()` builds one."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
PROJECTIONS = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
MIXTURE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
Built = tuple[nn.Module, list[str] | str]


def _family(
    name: str, targets: list[str] | str, head: str = "ForCausalLM", kind: str = "", **options: Any
) -> Callable[[], Built]:
    """A builder of `<name><head>`, its `<name><kind>Config` the usual small sizes and `options`; None drops a size."""

    def build() -> Built:
        sizes = {key: value for key, value in {**SIZES, **options}.items() if value is not None}
        config = getattr(transformers, f"{name}{kind}Config")(**sizes)
        return _random(getattr(transformers, f"{name}{head}"), config), targets

    return build


def _random(kind: Any, config: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # transformers starts them at zero, which would hide mistakes
                parameter.normal_(std=0.1)
    return model


def _gemma3() -> Built:
    text = {**SIZES, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return _random(transformers.Gemma3ForConditionalGeneration, config), ATTENTION


OLD = {"num_key_value_heads": None, "head_dim": None}
FAMILIES: dict[str, Callable[[], Built]] = {
    "llama": _family("Llama", PROJECTIONS, tie_word_embeddings=True),
    "mistral": _family("Mistral", PROJECTIONS, sliding_window=8),
    "qwen2": _family("Qwen2", PROJECTIONS),
    "qwen3": _family("Qwen3", PROJECTIONS),
    "gemma": _family("Gemma", PROJECTIONS),
    "gemma2": _family("Gemma2", PROJECTIONS, sliding_window=8),
    "gemma3-text": _family("Gemma3", PROJECTIONS, kind="Text", sliding_window=8),
    "phi": _family("Phi", ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]),
    "phi3": _family("Phi3", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "gpt2": _family("GPT2", ["c_attn", "c_proj", "c_fc"], "LMHeadModel", **OLD, n_positions=64),
    "gpt-neox": _family("GPTNeoX", ["query_key_value", "dense", "dense_h_to_4h"], **OLD),
    "gptj": _family("GPTJ", ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"], **OLD, rotary_dim=4),
    "opt": _family("OPT", ["q_proj", "v_proj", "fc1", "fc2"], **OLD, ffn_dim=64, word_embed_proj_dim=32),
    "bloom": _family("Bloom", ["query_key_value", "dense"], **OLD, n_head=4, n_layer=2),
    "falcon": _family("Falcon", ["query_key_value", "dense"], **OLD, multi_query=True),
    "mpt": _family("Mpt", ["Wqkv", "out_proj", "up_proj"], **OLD, d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    "olmo2": _family("Olmo2", PROJECTIONS),
    "cohere": _family("Cohere", PROJECTIONS),
    "cohere2": _family("Cohere2", PROJECTIONS, sliding_window=8),
    "granite": _family("Granite", PROJECTIONS),
    "stablelm": _family("StableLm", PROJECTIONS),
    "starcoder2": _family("Starcoder2", [*ATTENTION, "c_fc", "c_proj"]),
    "mixtral": _family("Mixtral", ATTENTION, num_local_experts=4),
    "qwen2-moe": _family("Qwen2Moe", "all-linear", **MIXTURE, shared_expert_intermediate_size=32),
    "qwen3-moe": _family("Qwen3Moe", ATTENTION, **MIXTURE),
    "deepseek-v3": _family(
        "DeepseekV3", ["q_a_proj", "q_b_proj", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        num_key_value_heads=4, head_dim=None, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        moe_intermediate_size=16, first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
        qk_nope_head_dim=8, v_head_dim=8,
    ),
    "llama4": _family(
        "Llama4", "all-linear", kind="Text", num_local_experts=4, intermediate_size_mlp=64,
        interleave_moe_layer_step=1,
    ),
    "gpt-oss": _family("GptOss", ATTENTION, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
    "qwen3-next": _family("Qwen3Next", "all-linear", **MIXTURE, shared_expert_intermediate_size=32,
        layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8),
    "gemma3n": _family(
        "Gemma3n", ATTENTION, kind="Text", num_hidden_layers=4, num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8, laurel_rank=4,
        sliding_window=8, activation_sparsity_pattern=[0.0] * 4,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "zamba2": _family(
        "Zamba2", ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj"], num_hidden_layers=4, num_key_value_heads=4,
        mamba_d_state=8, mamba_headdim=16, n_mamba_heads=4, mamba_ngroups=1, num_mem_blocks=1, adapter_rank=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
    ),
    "gemma3": _gemma3,
    "bert": _family("Bert", ["query", "key", "value", "dense"], "ForSequenceClassification", **OLD),
    "roberta": _family("Roberta", ["query", "key", "value"], "ForSequenceClassification", **OLD, pad_token_id=1),
    "modernbert": _family("ModernBert", ["Wqkv", "Wo", "Wi"], "ForSequenceClassification", **OLD),
    "albert": _family("Albert", ["query", "key", "value"], "ForSequenceClassification", **OLD, embedding_size=32),
}  # fmt: skip
