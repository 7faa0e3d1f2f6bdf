"""How a tokenizer splits text, in llama.cpp's terms.

Decides which tokenizers llama.cpp reproduces exactly, recognised by what their tokenizer.json does to text and never by a
model's name: llama.cpp's converter recognises them by a hash of the ids of a test string, which fails for every
vocabulary that it does not know. Byte-level BPE is recognised by the expression that splits words. BPE over complete texts with byte
fallback, as in SentencePiece (Llama 2, Mistral, Gemma, Phi-3), is llama.cpp's "llama" tokenizer, which has scores but no
merges: any two neighbours that make a token may merge, the best score first, the leftmost of equals. That is the same
only if every such pair is a merge and the merges of one token are consecutive; both are checked.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_core import from_json

from cot_unsloth.export.refusal import not_for_gguf

_WHERE = "tokenizer.json"
# Letters (L), marks (M) and numbers (N) are Unicode's categories. `\s+(?!\S)` leaves the last space of a run to the
# word that follows it.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_MARKED = (
    _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
# Three splits, one after another: numbers in threes, runs of Chinese and Japanese characters, words.
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_PRE: dict[tuple[tuple[str, ...], bool], str] = {
    # Llama 3 (digits in threes; complete words are looked up first), DBRX, Qwen2 (single digits), Qwen3.5, ...
    ((_WORDS + r"\p{N}{1,3}" + _REST,), True): "llama-bpe",
    ((_WORDS + r"\p{N}{1,3}" + _REST,), False): "dbrx",
    ((_WORDS + r"\p{N}" + _REST,), False): "qwen2",
    ((_MARKED,), False): "qwen35",
    (_DEEPSEEK, False): "deepseek-v3",
    ((_GPT2,), False): "gpt-2",
    ((_DIGIT, _GPT2), False): "smollm",
}
"""llama.cpp's name, by the expressions that split text, one after another, and whether a word of the vocabulary is
taken as one token before merges are tried. `tekken` and `gpt-4o` are left out: llama.cpp (2026-10) knows the names but reads
their character classes differently, and split 37 and 31 of 3,008 strings differently."""
Tree = Mapping[str, Any]
"""tokenizer.json or a part of it, whose keys depend on its `type`; matched by value where it is read."""
_SPACE = "\u2581"
BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
"""The tokens for bytes that no other token covers."""


@dataclass(frozen=True)
class Split:
    """How text is split, as llama.cpp's settings."""

    model: str
    """`gpt2`: byte-level BPE; `llama`: SentencePiece-like."""
    pre: str
    """Name of the expression; `default` for SentencePiece-like."""
    space_prefix: bool = False
    """Whether a space is added before text at the beginning or after a control token."""
    in_turns: bool = False
    """Whether transformers adds such a space only at the very beginning, where a conversation has a control token."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Scores of tokens that are merged, for `llama`."""
    strips: bool = False
    """Whether added tokens strip the spaces after them."""


def tree(tokenizer: Any) -> Tree:
    """A fast tokenizer as its tokenizer.json."""
    parts: Tree = from_json(tokenizer.backend_tokenizer.to_str())
    return parts


def split_of(tokenizer: Any) -> Split:
    """How a tokenizer splits text.

    Raises:
        ModelError: in a way that llama.cpp is not known to support, which is named.
    """
    return _split_of(tokenizer.backend_tokenizer.to_str())


# Llama 3's tokenizer.json has 9 MB, and writing and verifying a file ask for its split several times.
@functools.lru_cache(maxsize=2)
def _split_of(text: str) -> Split:
    parts: Tree = from_json(text)  # twice as fast as json.loads: 0.2 to 0.35 s instead of 0.45 to 0.65 for Llama 3's
    model = parts["model"]
    if model["type"] != "BPE":
        raise not_for_gguf(f"a {model['type']} tokenizer", _WHERE)
    # Dropout makes merges random; the affixes belong to word-level vocabularies that llama.cpp has no key for.
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise not_for_gguf(f"a tokenizer with {name}", _WHERE)
    split = _sentencepiece(parts) if model.get("byte_fallback") else _byte_level(parts)
    for token in parts["added_tokens"]:
        for name in ("lstrip", "single_word"):
            # llama.cpp matches added tokens anywhere in a text, without looking at the characters around them.
            if token.get(name):
                raise not_for_gguf(f"a token {token['content']!r} with {name}", _WHERE)
        if split.space_prefix and token.get("normalized"):
            raise not_for_gguf(f"a token {token['content']!r} that is matched in normalized text", _WHERE)
    return replace(split, strips=_strips(parts["added_tokens"]))


_NEVER_STRIP = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def _strips(added: Sequence[Tree]) -> bool:
    """Whether added tokens strip the spaces after them: llama.cpp supports only Phi-3's set, all but a few."""
    strip = {token["content"] for token in added if token.get("rstrip")}
    names = {token["content"] for token in added}
    # llama.cpp cannot open a file that it takes for Phi-3's and that lacks one of these.
    if strip and (strip != names - _NEVER_STRIP or not names >= {"</s>", *_NEVER_STRIP}):
        raise not_for_gguf(f"a token {min(strip)!r} with rstrip, other than in Phi-3's tokenizer,", _WHERE)
    return bool(strip)


def general_name(name: str, split: Split) -> str:
    """The model name to write: GGUF has no key for `rstrip`, and llama.cpp recognises Phi-3 by its name.

    >>> general_name("Phi-3-mini", Split("llama", "default"))
    'Phi 3-mini'
    >>> general_name("mine", Split("llama", "default", strips=True))
    'mine (phi-3 tokenizer)'
    """
    named = re.search("phi-?3", name, re.IGNORECASE)
    if split.strips:
        return name if named else f"{name} (phi-3 tokenizer)"
    return re.sub("(phi)-?3", r"\1 3", name, flags=re.IGNORECASE)


def _flat(step: Tree | None, name: str) -> list[Tree]:
    """The steps of a normalizer or a pre-tokenizer, with nested sequences flattened."""
    if step is None:
        return []
    return [inner for outer in step[name] for inner in _flat(outer, name)] if step["type"] == "Sequence" else [step]


def _byte_level(parts: Tree) -> Split:
    # NFC alone is left to the caller; see `verify._normal`.
    others = [step["type"] for step in _flat(parts.get("normalizer"), "normalizers") if step["type"] != "NFC"]
    if others:
        raise not_for_gguf(f"a tokenizer that normalizes text by {others[0]}", _WHERE)
    steps = _flat(parts["pre_tokenizer"], "pretokenizers")
    pre = _PRE.get((_expressions(steps), bool(parts["model"].get("ignore_merges"))))
    if pre is None:
        raise not_for_gguf(
            f"a tokenizer that splits text by {json.dumps(parts['pre_tokenizer'], ensure_ascii=False)[:300]}", _WHERE
        )
    return Split("gpt2", pre)


def _expressions(steps: Sequence[Tree]) -> tuple[str, ...]:
    """The expressions that split text; () if it is split in another way."""
    # ByteLevel writes each byte as a printable character (GPT-2's table), as llama.cpp does for every `gpt2` model.
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return ()
    expressions = []
    for step in steps[:-1]:
        if step["type"] == "Digits" and step.get("individual_digits"):
            expressions.append(_DIGIT)
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
            expressions.append(_expression(step))
        elif step["type"] == "Split" and step["behavior"] == "Removed" and step.get("invert"):
            expressions.append(_expression(step))  # what matches is kept, and everything does
        else:
            return ()
    # `use_regex`, on by default, is ByteLevel's own split by GPT-2's expression.
    return (*expressions, _GPT2) if steps[-1].get("use_regex", True) else tuple(expressions)


def _expression(step: Tree) -> str:
    """The expression of a Split; line ends are written out in some files and escaped in others."""
    return str(step["pattern"].get("Regex", "")).replace("\r", r"\r").replace("\n", r"\n")


def _sentencepiece(parts: Tree) -> Split:
    if parts["model"].get("ignore_merges"):
        raise not_for_gguf("a tokenizer with byte fallback and ignore_merges", _WHERE)
    # llama.cpp looks the bytes of unknown characters up by these names, and fails if one is missing.
    missing = [byte for byte in sorted(BYTES) if byte not in parts["model"]["vocab"]]
    if missing:
        raise not_for_gguf(f"a tokenizer with byte fallback and no token {missing[0]}", _WHERE)
    prefix, in_turns = _spaces(parts)
    scores = _scores(parts)
    _check_runs(parts, scores)
    return Split("llama", "default", prefix, in_turns, scores)


def _spaces(parts: Tree) -> tuple[bool, bool]:
    """`space_prefix` and `in_turns` of a tokenizer that replaces spaces and then merges the complete text."""
    normal = [_simple(step) for step in _flat(parts.get("normalizer"), "normalizers")]
    before = [_simple(step) for step in _flat(parts.get("pre_tokenizer"), "pretokenizers")]
    # Once its spaces are replaced, a text cannot be split at spaces.
    before = [step for step in before if step != "Split ' '" or f"Replace ' ' {_SPACE}" not in normal]
    match normal, before:
        case [["Replace ' ' \u2581"], []] | [[], ["Metaspace never"]]:
            return False, False
        case [["Prepend \u2581", "Replace ' ' \u2581"], []]:
            return True, False
        case [[], ["Metaspace first"]]:
            return False, True
    what = json.dumps({name: parts.get(name) for name in ("normalizer", "pre_tokenizer")}, ensure_ascii=False)
    raise not_for_gguf(f"a tokenizer with byte fallback and {what[:300]}", _WHERE)


def _simple(step: Tree) -> str:
    """A step in a few words, or its JSON if it is not known."""
    match step:
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
            return f"Replace {pattern!r} {content}"
        case {"type": "Prepend", "prepend": text}:
            return f"Prepend {text}"
        case {"type": "Split", "pattern": {"String": pattern}, "invert": False}:
            return f"Split {pattern!r}"
        case {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}:
            return f"Metaspace {scheme}"
    return json.dumps(step)


def _scores(parts: Tree) -> dict[str, float]:
    """A score for every token that is merged: the earlier the merge, the higher.

    Raises:
        ModelError: two tokens would merge to a third without being a merge; or the merges of two tokens alternate.
    """
    vocabulary = parts["model"]["vocab"]
    added = {token["content"] for token in parts["added_tokens"]}
    pairs = [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in parts["model"]["merges"]]
    merges = set(pairs)
    scores: dict[str, float] = {}
    last = ""
    for left, right in pairs:
        token = left + right
        if token != last and token in scores:
            raise not_for_gguf(f"a tokenizer whose merges to {token!r} are not consecutive", _WHERE)
        # llama.cpp only compares scores, so ranks do as well as SentencePiece's log-probabilities.
        scores.setdefault(token, -float(len(scores)))
        last = token
    for token in vocabulary.keys() - added:
        for split in range(1, len(token)):
            pair = (token[:split], token[split:])
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in merges:
                raise not_for_gguf(
                    f"a tokenizer with byte fallback that makes {token!r} from only some of its pairs, not from {pair},",
                    _WHERE,
                )
    return scores


def _check_runs(parts: Tree, scores: Mapping[str, float]) -> None:
    """Check repetitive texts, in which a token can be merged at two overlapping positions.

    llama.cpp takes the left one, tokenizers the one whose merge comes first.

    Raises:
        ModelError: the results differ.
    """
    from tokenizers import Tokenizer

    model = {**parts["model"], "dropout": None}
    ranks = {
        tuple(merge.split(" ", 1) if isinstance(merge, str) else merge): i for i, merge in enumerate(model["merges"])
    }
    alone = Tokenizer.from_str(
        json.dumps({"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "model": model})
    )
    for (left, right), rank in ranks.items():
        token = left + right
        later = (right, token[len(right) :])
        # Two occurrences overlap only if the second half of one can begin the next: "aba" in "ababa".
        if token.startswith(right) and ranks.get(later, rank) < rank:
            # Four repetitions cover every overlap of a token with itself: a later one only repeats an earlier one.
            run = token * 4
            for text in (run[:length] for length in range(len(token), 4 * len(token))):
                if alone.encode(text).tokens != merged(text, scores):
                    raise not_for_gguf(f"a tokenizer with byte fallback that merges {text!r} from the right", _WHERE)


def merged(text: str, scores: Mapping[str, float]) -> list[str]:
    """A text as llama.cpp's "llama" tokenizer merges it: of all neighbours that make a token, those of the best score first.

    >>> merged("aaab", {"aa": 0.0, "ab": -1.0})
    ['aa', 'ab']
    """
    pieces = list(text)
    while True:
        known = [(-scores[a + b], at) for at, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in scores]
        if not known:
            return pieces
        at = min(known)[1]
        pieces[at : at + 2] = ["".join(pieces[at : at + 2])]


def ids_in_a_turn(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text as in a conversation, after a control token: there llama.cpp is exact."""
    tokens = tokenizer.added_tokens_decoder.values()
    # With rstrip, the token would swallow the space that the text begins with.
    control = next((str(token) for token in tokens if token.special and not token.rstrip), "")
    ids = list(tokenizer(control + text, add_special_tokens=False)["input_ids"])
    return ids[1:] if control else ids
