"""Model families that people fine-tune, each as a tiny config of transformers' own class."""

from dataclasses import dataclass, field
from typing import Any

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "embedding_size": 32, "type_vocab_size": 2,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "moe_k": 2,
}  # fmt: skip
"""What is made small, where a config has it."""


@dataclass(frozen=True)
class Family:
    """A family of models."""

    model_type: str
    """Of transformers' config."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Of the config, beyond `SIZES`."""
    encoder: bool = False
    """Whether its tokenizer puts a text between [CLS] and [SEP]; else it has a start and an end token."""
    fast: tuple[str, ...] = ()
    """What the fast tests try of it: full, lora."""


def vision(**fields: Any) -> dict[str, Any]:
    return {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **fields}


_GEMMA3 = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
_HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
}
_DEEPSEEK = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 8,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4, "n_shared_experts": 1,
}  # fmt: skip
_MAMBA = {"state_size": 8, "conv_kernel": 4, "expand": 2}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip

CAUSAL = {
    "Llama": Family("llama", fast=("full",)),
    "Llama 4": Family(
        "llama4",
        {
            "text_config": {"intermediate_size_mlp": 64, "moe_layers": [1], "no_rope_layers": [1, 0]},
            "vision_config": vision(
                projector_input_dim=16, projector_output_dim=16, vision_output_dim=16, image_size=28
            ),
        },
    ),
    "Mistral": Family("mistral", {"sliding_window": 8}),
    "Ministral": Family("ministral", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "Mistral 3": Family(
        "mistral3", {"text_config": {"model_type": "mistral"}, "vision_config": {"model_type": "pixtral"}}
    ),
    "Mixtral": Family("mixtral", fast=("lora",)),
    "Qwen 2": Family("qwen2"),
    "Qwen 2 MoE": Family("qwen2_moe"),
    "Qwen 3": Family("qwen3"),
    "Qwen 3 MoE": Family("qwen3_moe"),
    "Qwen 3 Next": Family("qwen3_next", {**_HYBRID, "linear_key_head_dim": 8, "linear_value_head_dim": 8}),
    "Qwen 3.5": Family(
        "qwen3_5",
        {
            "text_config": {**_HYBRID, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
            "vision_config": {
                "hidden_size": 16,
                "depth": 1,
                "num_heads": 2,
                "intermediate_size": 16,
                "out_hidden_size": 32,
            },
        },
    ),
    "Gemma": Family("gemma"),
    "Gemma 2": Family("gemma2", {"sliding_window": 8}),
    "Gemma 3, text": Family("gemma3_text", _GEMMA3),
    "Gemma 3": Family("gemma3", {"text_config": _GEMMA3, "vision_config": vision(image_size=28)}, fast=("full",)),
    "Phi": Family("phi"),
    "Phi-3": Family("phi3"),
    "Phi-3.5 MoE": Family("phimoe", {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0}),
    "Falcon": Family("falcon", {"num_kv_heads": 2}),
    "Falcon Mamba": Family("falcon_mamba", _MAMBA),
    "Falcon-H1": Family(
        "falcon_h1",
        {
            "mamba_d_ssm": 64,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "GPT-2": Family("gpt2", _GPT),
    "GPT-Neo": Family(
        "gpt_neo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8}
    ),
    "GPT-J": Family("gptj", {**_GPT, "rotary_dim": 4}),
    "GPT-NeoX": Family("gpt_neox"),
    "GPT BigCode": Family("gpt_bigcode", _GPT),
    "CodeGen": Family("codegen", {**_GPT, "rotary_dim": 4}),
    "OPT": Family("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "BLOOM": Family("bloom", {"n_layer": 2, "n_head": 4}),
    "MPT": Family("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}),
    "StableLM": Family("stablelm"),
    "StarCoder2": Family("starcoder2"),
    "Cohere": Family("cohere"),
    "Cohere 2": Family("cohere2", {"sliding_window": 8}),
    "OLMo": Family("olmo"),
    "OLMo 2": Family("olmo2"),
    "OLMo 3": Family("olmo3", {"sliding_window": 8}),
    "OLMoE": Family("olmoe"),
    "Granite": Family("granite"),
    "Granite MoE": Family("granitemoe"),
    "Granite 4 hybrid": Family(
        "granitemoehybrid",
        {
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "GLM": Family("glm"),
    "GLM-4": Family("glm4"),
    "GLM-4 MoE": Family("glm4_moe", {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}),
    "DeepSeek V2": Family("deepseek_v2", _DEEPSEEK),
    "DeepSeek V3": Family("deepseek_v3", _DEEPSEEK),
    "gpt-oss": Family("gpt_oss", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "SmolLM3": Family("smollm3", {"no_rope_layers": [1, 0]}),
    "ERNIE 4.5": Family("ernie4_5"),
    "EXAONE 4": Family("exaone4", {"sliding_window": 8}),
    "Seed-OSS": Family("seed_oss"),
    "Nemotron": Family("nemotron"),
    "Persimmon": Family("persimmon"),
    "LFM2": Family("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Bamba": Family(
        "bamba",
        {
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "Jamba": Family(
        "jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "Mamba": Family("mamba", _MAMBA),
    "Mamba 2": Family("mamba2", {**_MAMBA, "num_heads": 8, "n_groups": 1, "chunk_size": 8}),
    "RecurrentGemma": Family(
        "recurrent_gemma", {"lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"]}
    ),
    "RWKV": Family("rwkv", {"attention_hidden_size": 32, "context_length": 128}),
    "XGLM": Family("xglm", {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}),
    "BioGPT": Family("biogpt"),
}
"""Causal language models by name."""

_DECODERS = (
    "Llama", "Mistral", "Mixtral", "Qwen 2", "Qwen 3", "Gemma", "Gemma 2", "Gemma 3, text", "Gemma 3", "Phi", "Phi-3",
    "Falcon", "GPT-2", "GPT-Neo", "GPT-J", "GPT-NeoX", "OPT", "BLOOM", "StableLM", "StarCoder2", "OLMo 2", "GLM",
    "DeepSeek V3", "gpt-oss", "SmolLM3",
)  # fmt: skip

CLASSIFIERS = {
    "BERT": Family("bert", encoder=True),
    "RoBERTa": Family("roberta", encoder=True, fast=("full",)),
    "DistilBERT": Family("distilbert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}, encoder=True),
    "ALBERT": Family("albert", encoder=True),
    "ELECTRA": Family("electra", encoder=True),
    "DeBERTa": Family(
        "deberta", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": 32}, encoder=True
    ),
    "DeBERTa v2": Family(
        "deberta-v2",
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": 32, "conv_kernel_size": 3},
        encoder=True,
    ),
    "DeBERTa v3": Family(
        "deberta-v2",
        {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "pooler_hidden_size": 32,
            "position_buckets": 16,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "type_vocab_size": 0,
            "position_biased_input": False,
        },
        encoder=True,
    ),
    "XLM-RoBERTa": Family("xlm-roberta", encoder=True),
    "XLM-RoBERTa XL": Family("xlm-roberta-xl", encoder=True),
    "XMOD": Family("xmod", {"languages": ["en_XX", "de_DE"]}, encoder=True),
    "XMOD, with a default language": Family(
        "xmod", {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"}, encoder=True
    ),
    "CamemBERT": Family("camembert", encoder=True),
    "RemBERT": Family("rembert", {"input_embedding_size": 16, "output_embedding_size": 32}, encoder=True),
    "RoBERTa pre-layernorm": Family("roberta-prelayernorm", encoder=True),
    "ModernBERT": Family("modernbert", {"local_attention": 8}, encoder=True),
    "EuroBERT": Family("eurobert", encoder=True),
    "XLNet": Family("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}, encoder=True, fast=("full",)),
    "MPNet": Family("mpnet", encoder=True),
    "Funnel": Family(
        "funnel",
        {
            "num_hidden_layers": None,
            "architectures": ["FunnelModel"],
            "d_model": 32,
            "d_head": 8,
            "d_inner": 64,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
            "n_head": 4,
        },
        encoder=True,
    ),
    "BigBird": Family("big_bird", {"attention_type": "original_full"}, encoder=True),
    "BigBird, sparse": Family(
        "big_bird", {"attention_type": "block_sparse", "block_size": 8, "num_random_blocks": 1}, encoder=True
    ),
    "Longformer": Family("longformer", {"attention_window": 8}, encoder=True),
    "Nystromformer": Family("nystromformer", {"num_landmarks": 8, "segment_means_seq_len": 8}, encoder=True),
    "ConvBERT": Family("convbert", {"num_groups": 1}, encoder=True),
    "FNet": Family("fnet", encoder=True),
    "SqueezeBERT": Family("squeezebert", encoder=True),
    "MobileBERT": Family("mobilebert", {"true_hidden_size": 16, "intra_bottleneck_size": 16}, encoder=True),
    "Megatron-BERT": Family("megatron-bert", encoder=True),
    "ERNIE": Family("ernie", encoder=True),
    "ESM": Family("esm", {"position_embedding_type": "rotary"}, encoder=True),
    "NomicBERT": Family("nomic_bert", encoder=True),
    "RoFormer": Family("roformer", encoder=True),
    "CANINE": Family("canine", encoder=True),
    "I-BERT": Family("ibert", encoder=True),
    "YOSO": Family("yoso", {"use_expectation": True}, encoder=True),
    "FlauBERT": Family("flaubert", {"emb_dim": 32, "n_layers": 2, "n_heads": 4}, encoder=True),
    "XLM": Family("xlm", {"emb_dim": 32, "n_layers": 2, "n_heads": 4}, encoder=True),
    "T5": Family("t5", {**_T5, "dropout_rate": 0.0}),
    "mT5": Family("mt5", _T5),
    "UMT5": Family("umt5", _T5),
    "BART": Family("bart", _BART, fast=("lora",)),
    "mBART": Family("mbart", _BART),
    "CTRL": Family("ctrl", {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64}),
    "OpenAI GPT": Family("openai-gpt", _GPT),
    **{name: CAUSAL[name] for name in _DECODERS},
}
"""Text classifiers by name, decoders among them."""
