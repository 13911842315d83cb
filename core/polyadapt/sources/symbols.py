"""The symbols that a checkpoint of task `ctc` writes, from the files beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyadapt.errors import UserError, nearest
from polyadapt.files import read_json
from polyadapt.sources.common import check_labels
from polyadapt.sources.options import HfOptions


def ctc_details(directory: Path, config: Any, options: HfOptions, reference: str) -> dict[str, object]:
    """`vocabulary`, `blank_id` and `separator` of a checkpoint with a CTC head, as its `labels` or its `vocab.json` say.

    Args:
        directory: folder of the model's files.
        config: the library's.
        options: of the reference; `labels` name all symbols by their ids, `language` chooses where `vocab.json` holds several alphabets.
        reference: for messages.

    Raises:
        UserError: labels that are not one a symbol, several alphabets and no language, or a broken file.
    """
    size, blank = int(config.vocab_size), int(config.pad_token_id or 0)
    settings = _read(directory / "tokenizer_config.json", reference)
    made: dict[str, object] = {"blank_id": blank}
    separator = settings.get("word_delimiter_token")
    if isinstance(separator, dict):  # as the library writes a token with its settings
        separator = separator.get("content")
    if separator:
        made["separator"] = str(separator)
    if options.labels:
        return {**made, "vocabulary": list(check_labels(options.labels, size, reference))}
    symbols = _alphabet(_read(directory / "vocab.json", reference), options.language or str(settings.get("target_lang") or ""), reference)
    symbols |= _read(directory / "added_tokens.json", reference)
    if not symbols:
        return made
    if strange := [symbol for symbol, number in symbols.items() if not isinstance(number, int) or number < 0]:
        raise UserError(f"{reference}: vocab.json gives {strange[0]!r} the id {symbols[strange[0]]!r}, expected a whole number; copy the file from the checkpoint anew")
    names = {number: symbol for symbol, number in symbols.items()}
    return {**made, "vocabulary": [names.get(number, f"<{number}>") for number in range(size)]}


def _alphabet(found: dict[str, Any], language: str, reference: str) -> dict[str, Any]:
    """Of one language, where a file holds an alphabet for each."""
    if not found or not all(isinstance(value, dict) for value in found.values()):
        return found
    if language not in found:
        raise UserError(
            f"{reference} writes {len(found)} languages, each in symbols of its own, and {language or 'none'!r} was asked for{nearest(language, found)}; add ?language="
        )
    alphabet: dict[str, Any] = found[language]
    return alphabet


def _read(path: Path, reference: str) -> dict[str, Any]:
    found = read_json(path, reference) if path.is_file() else {}
    if not isinstance(found, dict):
        raise UserError(f"{reference}: {path.name} holds a {type(found).__name__}, expected a table; copy the file from the checkpoint anew")
    return found
