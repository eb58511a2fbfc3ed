"""The quickstart's config with the tiny model: the settings that make it a matter of a minute."""

SMALL = {
    "rounds": 1,
    "prompts.train_limit": 16,
    "prompts.heldout_limit": 8,
    "generate.max_tokens": 16,
    "engine.dtype": "float32",
    "engine.kv_cache_gib": 0.1,
    "engine.max_model_len": 2048,
    "train.precision": "fp32",
    "train.micro_batch_pairs": 4,
}
OVERRIDES = [f"{key}={value}" for key, value in SMALL.items()]
SETS = [word for override in OVERRIDES for word in ("--set", override)]
