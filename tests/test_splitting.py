"""Tokenizers in GGUF files: llama.cpp gives the same ids over a thousand strings, or the tokenizer is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import made
from test_gguf import nasty, written
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from cot_unsloth import tasks
from cot_unsloth.core.errors import ModelError
from cot_unsloth.export.gguf import tokenizers, writer
from cot_unsloth.export.gguf import verify as checks
from cot_unsloth.models.llamacpp import LlamaCpp

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
GEMMA = normalizers.Replace(" ", "▁")


def corpus() -> list[str]:
    rows = [
        example.question for example in tasks.generate("world:chains,words,countdown", split="train", n=400, seed=1)
    ]
    return [
        *rows,
        *nasty(200, seed=7),
        "    if x == 3:\n        return ----- ====== ......" * 3,
        *["a " * n for n in range(9)],
    ]


def pieces(size: int = 600) -> list[str]:
    """A vocabulary trained on the corpus, in the order in which it was learnt: letters, then longer pieces."""
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, limit_alphabet=120, show_progress=False)
    learner.train_from_iterator([text.replace(" ", "▁") for text in corpus()], trainer)
    return [text for text, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1])]


def sentencepiece(normalizer: Any, before: Any = None, *, drop: int = 0, order: int = 1) -> PreTrainedTokenizerFast:
    """BPE with byte fallback and all the merges that a conversion from SentencePiece writes."""
    learnt = pieces()
    vocab = {text: i for i, text in enumerate([*SPECIALS, *sorted(tokenizers.BYTES), *learnt])}
    merges = [
        (text[:at], text[at:])
        for text in learnt
        for at in list(range(1, len(text)))[::order]
        if text[:at] in vocab and text[at:] in vocab
    ]
    kept = merges[: len(merges) - drop]
    backend = Tokenizer(models.BPE(vocab, kept, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if normalizer is not None:
        backend.normalizer = normalizer
    if before is not None:
        backend.pre_tokenizer = before
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return ready(PreTrainedTokenizerFast(tokenizer_object=backend))


def ready(tokenizer: Any) -> Any:
    tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = (
        "<unk>",
        "<s>",
        "<|im_end|>",
        "<pad>",
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def llama_class(folder: Path) -> Any:
    """What transformers 5 makes of Llama 2, Mistral 7B and Phi-3: the class decides, the steps in tokenizer.json do not."""
    tree = json.loads(sentencepiece(LLAMA_2).backend_tokenizer.to_str())["model"]
    tokenizer = LlamaTokenizer(vocab=tree["vocab"], merges=[tuple(merge) for merge in tree["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[3:]})
    return ready(tokenizer)


def byte_level(*steps: Any, regex: bool = False, ignore_merges: bool = False, nfc: bool = False) -> Any:
    """Byte-level BPE that applies these pre-tokenizers first."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)]
    )
    if nfc:
        backend.normalizer = normalizers.Sequence([normalizers.NFC()])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(corpus(), trainer)
    return ready(PreTrainedTokenizerFast(tokenizer_object=backend))


def by(*expressions: str, behavior: str = "isolated", invert: bool = False) -> list[Any]:
    return [pre_tokenizers.Split(Regex(text), behavior, invert) for text in expressions]


CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = CL100K.replace("{1,3}", "")
QWEN35 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
SUPPORTED: dict[str, Any] = {
    "llama 2": lambda folder: sentencepiece(LLAMA_2),
    "gemma": lambda folder: sentencepiece(GEMMA, pre_tokenizers.Split(" ", "merged_with_previous")),
    "metaspace never": lambda folder: sentencepiece(None, pre_tokenizers.Metaspace("▁", "never", split=False)),
    "as the library trains it": lambda folder: trained_by_the_library(),
    "metaspace first": lambda folder: sentencepiece(None, pre_tokenizers.Metaspace("▁", "first", split=False)),
    "llama class": llama_class,
    "phi 3": lambda folder: stripping(SPECIALS[2:-1]),
    "llama 3": lambda folder: byte_level(*by(CL100K), ignore_merges=True),
    "phi 4": lambda folder: byte_level(*by(CL100K, behavior="removed", invert=True)),
    "qwen 2, r1": lambda folder: byte_level(*by(QWEN), nfc=True),
    "qwen 3.5": lambda folder: byte_level(*by(QWEN35)),
    "deepseek 3": lambda folder: byte_level(*by(*DEEPSEEK)),
    "gpt 2": lambda folder: byte_level(regex=True),
    "starcoder, smollm": lambda folder: byte_level(pre_tokenizers.Digits(individual_digits=True), regex=True),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_llama_cpp_gives_the_same_ids_for_a_thousand_strings(name: str, tmp_path: Path) -> None:
    SUPPORTED[name](tmp_path).save_pretrained(tmp_path / "tokenizer")
    model, renderer = made("llama", tmp_path, tmp_path / "tokenizer", num_hidden_layers=1)
    llama = LlamaCpp(written(model, tmp_path, "q8_0"), context=512)
    tokenizer = renderer.chat.tokenizer
    texts = [*nasty(1000), *runs()]
    different = [t for t in texts if llama.ids(t, special=False) != tokenizers.ids_in_a_turn(tokenizer, t)]
    assert different == []
    conversations = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n{text}" for text in texts[:300]]
    assert [
        text for text in conversations if llama.ids(text)[-len(renderer.chat.ids(text)) :] != renderer.chat.ids(text)
    ] == []
    examples = tasks.generate("world:chains,words", split="test", n=6, seed=3)
    verdicts = checks.check_text(llama, renderer, examples)
    llama.close()
    assert all(check.passed for check in verdicts), verdicts


REFUSED: dict[str, tuple[Any, str]] = {
    "a merge is missing": (lambda: sentencepiece(GEMMA, drop=1), "makes '.*' from only some of its pairs"),
    "a space where there is none": (
        lambda: sentencepiece(None, pre_tokenizers.Metaspace("▁", "always", split=False)), "Metaspace",
    ),
    "words apart": (lambda: sentencepiece(None, pre_tokenizers.Metaspace("▁", "never", split=True)), "Metaspace"),
    "lower case": (lambda: sentencepiece(normalizers.Sequence([normalizers.Lowercase(), GEMMA])), "Lowercase"),
    "other words": (lambda: byte_level(*by(r"\w+")), "splits text by"),
    "tekken": (lambda: byte_level(*by(r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}]+|\p{N}|\s+|."), ignore_merges=True), "splits text by"),
    "words of the vocabulary first": (lambda: byte_level(*by(QWEN), ignore_merges=True), "splits text by"),
    "a token that takes the spaces after it": (lambda: stripping(["<|im_end|>"]), "with rstrip, other than"),
    "wordpiece": (lambda: ready(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece({"<unk>": 0}, unk_token="<unk>")))), "a WordPiece tokenizer"),
}  # fmt: skip


def trained_by_the_library() -> Any:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = GEMMA
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    alphabet = [*SPECIALS, *sorted(tokenizers.BYTES)]
    backend.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=900, special_tokens=alphabet, show_progress=False)
    )
    return ready(PreTrainedTokenizerFast(tokenizer_object=backend))


def stripping(tokens: list[str]) -> Any:
    """A tokenizer some of whose tokens also match the spaces after them (rstrip)."""
    tree = json.loads(
        sentencepiece(None, pre_tokenizers.Metaspace("▁", "first", split=False)).backend_tokenizer.to_str()
    )
    for token in tree["added_tokens"]:
        token["rstrip"] = token["content"] in tokens
    return ready(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(tree))))


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_llama_cpp_would_split_differently_is_refused(name: str) -> None:
    tokenizer, message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as refused:
        tokenizers.split_of(tokenizer())
    assert refused.value.name == "not_for_gguf"


def test_scores_of_overlapping_merges_reproduce_the_tokenizer() -> None:
    """A tokenizer.json may rank the right one of two overlapping pairs first; llama.cpp takes the left one of equal ones."""
    vocab = {text: i for i, text in enumerate([*SPECIALS, *sorted(tokenizers.BYTES), "a", "b", "ab", "aba", "ba"])}
    right_first = [("b", "a"), ("a", "ba"), ("ab", "a"), ("a", "b")]
    backend = Tokenizer(models.BPE(vocab, right_first, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = GEMMA
    split = tokenizers.split_of(ready(PreTrainedTokenizerFast(tokenizer_object=backend)))
    backend.normalizer = None
    for text in ("aba", "abab", "ababa", "babab"):
        assert backend.encode(text).tokens == tokenizers.merged(text, split.scores)


def test_the_model_name_does_not_decide_whether_tokens_strip_spaces(tmp_path: Path) -> None:
    """llama.cpp strips spaces after tokens in any model whose name contains phi-3, and cannot open some of them."""
    sentencepiece(GEMMA).save_pretrained(tmp_path / "tokenizer")
    model, renderer = made("phi3", tmp_path, tmp_path / "tokenizer", num_hidden_layers=1)
    llama = LlamaCpp(written(replace(model, name="My-Phi3-tune"), tmp_path, "q8_0"), context=512)
    text = "<|im_start|>user\n  two <|im_end|> \n"
    assert llama.ids(text)[-len(renderer.chat.ids(text)) :] == renderer.chat.ids(text)
    llama.close()


def test_a_template_that_begins_with_a_word_is_refused_if_a_space_would_be_lost(tmp_path: Path) -> None:
    tokenizer = llama_class(tmp_path)
    tokenizer.chat_template = TEMPLATE.replace("{{ bos_token }}", "Chat: ")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model, _ = made("mistral", tmp_path, tmp_path / "tokenizer", num_hidden_layers=1)
    with pytest.raises(ModelError, match="a chat template that begins with a word"):
        writer.check(model)


def runs() -> Iterable[str]:
    return [
        before + letter * n + after
        for letter in " -=.a"
        for n in (1, 2, 3, 5, 8, 13, 30)
        for before in ("", "x")
        for after in ("", "y")
    ]
