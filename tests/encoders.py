"""A small Hugging Face encoder and its tokenizer, drawn at random: no download."""

import json
from pathlib import Path

import torch

WORDS = ("the", "bank", "card", "lost", "my", "is", "late", "train", "pay", "##s", "##ing", "not", "why")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tokenizer_json(*, special: bool = True) -> str:
    """Return the tokenizer.json of a WordPiece tokenizer of a few words; without `special`, one that adds no special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {token: number for number, token in enumerate((*SPECIAL, *WORDS, *"abcdefghijklmnopqrstuvwxyz"))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer.to_str()


def save_encoder(folder: Path, *, seed: int = 0, model_type: str = "bert", **changes) -> Path:
    """Save a small encoder of random weights, with its tokenizer, as `AutoModel.save_pretrained` does."""
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    settings = {"vocab_size": 64, "max_position_embeddings": 40, **sizes, **changes}
    torch.manual_seed(seed)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **settings))
    with torch.no_grad():  # at initialisation layers hardly differ from no layers
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    assert json.loads((folder / "config.json").read_text())["model_type"] == model_type
    return folder
