"""A language model that the tests make themselves in seconds: real weights and tokenizer for the real engines."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 256
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"

# It writes the beginning of text itself, so that a tokenizer that adds its own would double it.
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_SUBJECTS = ["the river", "a small town", "the old bridge", "her garden", "the night train", "a grey heron"]
_VERBS = ["follows", "crosses", "remembers", "avoids", "lights", "guards"]
_OBJECTS = ["the northern road", "a field of barley", "the harbour wall", "an empty square", "the last ferry"]


def sentences(count: int, seed: int) -> list[str]:
    """Sentences of one simple grammar."""
    draw = random.Random(seed)
    return [f"{draw.choice(_SUBJECTS)} {draw.choice(_VERBS)} {draw.choice(_OBJECTS)}." for _ in range(count)]


def repetitive_text(seed: int) -> str:
    """A few sentences, one of which keeps coming back: a model trained on this repeats itself."""
    first, *others = sentences(4, seed)
    return " ".join([first, others[0], first, first, others[1], first, others[2], first])


def make(folder: Path) -> Path:
    """Train tokenizer and model, and save them as a Hugging Face folder."""
    tokenizer = _tokenizer()
    model = _model(tokenizer)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so little work is not worth the waiting for each other on a busy machine
    try:
        _train(model, tokenizer)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = [PAD, BOS, EOS, USER, ASSISTANT, SYSTEM]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(sentences(500, seed=0), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _model(tokenizer: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the smallest that vLLM's attention takes on a CPU
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _train(model: LlamaForCausalLM, tokenizer: Any, steps: int = 60, batch: int = 16, length: int = 64) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        texts = [repetitive_text(seed=step * batch + i) for i in range(batch)]
        rows = tokenizer(texts, truncation=True, max_length=length, padding=True, return_tensors="pt")
        labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
        model(**rows, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
