"""Text to ids of phonemes, as the voices of Piper were trained: by the program espeak-ng and a table of symbols.

A text becomes `^ _ p _ p _ … $`: a start, every symbol followed by a pad, an end. espeak-ng drops punctuation, so it is
asked clause by clause and the marks are put back.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt_runtime.errors import InputError, ManifestError

PROGRAM, WAIT_S = "espeak-ng", 60.0
START, END, PAD = "^", "$", "_"

_LANGUAGE = re.compile(r"[A-Za-z][A-Za-z0-9+/_-]*")  # no dot: a name of espeak-ng's, no path that leads elsewhere
_CLAUSE = re.compile(r"([.,;:!?]+)(?=\s|$)")
_SWITCH = re.compile(r"\([a-z-]+\)")  # "(fr)": espeak-ng says so where a word is of another language


class PhonemeReader:
    """A voice's phonemes with the settings of a spec.

    Args:
        spec: `language` (espeak-ng's name), `maximum_tokens`, `inputs` {ids, mask: name of the graph's input}.
        path: json whose `phoneme_id_map` gives every symbol its ids; None where only ids are read.

    Raises:
        ManifestError: the language is no name of one.
    """

    def __init__(self, spec: Mapping[str, Any], path: Path | None) -> None:
        self._names: Mapping[str, str] = spec["inputs"]
        self._language, self._maximum = str(spec.get("language") or ""), spec.get("maximum_tokens")
        if self._language and not _LANGUAGE.fullmatch(self._language):
            raise ManifestError(f"pre-processing of kind 'phonemes': {self._language!r} is no language of {PROGRAM}")
        self._path = path
        self._table: dict[str, list[int]] | None = None

    def __call__(self, raw: Any) -> dict[str, np.ndarray]:
        """One text, or array of ids, as int64 [tokens] for each input of the graph.

        Raises:
            InputError: neither text nor ids, no espeak-ng, or phonemes that the voice does not know.
        """
        if isinstance(raw, np.ndarray) and raw.ndim == 1 and raw.dtype.kind in "iu":
            ids = [int(token) for token in raw]
        elif isinstance(raw, str):
            ids = self.ids(self.phonemes(raw))
        else:
            raise InputError(f"a text is a string or an int array of phoneme ids, found {type(raw).__name__}")
        if self._maximum is not None and len(ids) > self._maximum:
            raise InputError(f"the text has {len(ids)} ids, at most {self._maximum} are taken; give it sentence by sentence")
        values = {"ids": np.array(ids, np.int64), "mask": np.ones(len(ids), np.int64)}
        return {name: values[role] for role, name in self._names.items() if name}

    def phonemes(self, text: str) -> str:
        """A text in the phonetic alphabet, its punctuation kept.

        Raises:
            InputError: espeak-ng is not installed or does not know the language, or nothing can be spoken.
        """
        parts = _CLAUSE.split(text)
        said = [f"{self._speak(clause)}{marks}" for clause, marks in zip(parts[::2], [*parts[1::2], ""], strict=True) if clause.strip() or marks]
        joined = " ".join(said).strip()
        if not any(sign.isalpha() for sign in joined):
            raise InputError(f"nothing in {text[:40]!r} can be spoken; give a text with words")
        return joined

    def ids(self, phonemes: str) -> list[int]:
        """Ids of symbols, with start, pads and end.

        Raises:
            InputError: symbols that the voice does not know; each is named with its count.
        """
        table = self._symbols()
        symbols = unicodedata.normalize("NFD", phonemes)
        if strange := Counter(symbol for symbol in symbols if symbol not in table):
            listed = ", ".join(f"{symbol!r} ({count} times)" for symbol, count in strange.most_common())
            raise InputError(f"this voice does not know the phonemes {listed} of {phonemes[:60]!r}; is the text in its language ({self._language})?")
        ids = [*table[START], *table[PAD]]
        for symbol in symbols:
            ids += [*table[symbol], *table[PAD]]
        return [*ids, *table[END]]

    def _speak(self, clause: str) -> str:
        """Phonemes of words without marks."""
        if not clause.strip():
            return ""
        program = shutil.which(PROGRAM)
        if not self._language or program is None:
            lacking = f"the program {PROGRAM}, which is not installed (Debian: apt-get install {PROGRAM})" if self._language else "a language, which this bundle does not name"
            raise InputError(f"turning text into phonemes needs {lacking}; or give phoneme ids as an int array")
        command = [program, "-q", "--ipa", "-b", "1", "-v", self._language, "--stdin"]
        try:
            done = subprocess.run(command, input=clause.encode(), capture_output=True, timeout=WAIT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{PROGRAM} did not answer within {WAIT_S:.0f} s; give a shorter text") from error
        if done.returncode:
            raise InputError(f"{PROGRAM} cannot speak {self._language!r}: {done.stderr.decode(errors='replace').strip()[:200]}")
        return " ".join(_SWITCH.sub("", done.stdout.decode(errors="replace")).split())

    def _symbols(self) -> dict[str, list[int]]:
        """The table, read at first use."""
        if self._table is None:
            if self._path is None:
                raise InputError("this bundle has no table of phonemes among its assets; give phoneme ids as an int array")
            try:
                found = json.loads(self._path.read_text(encoding="utf-8"))["phoneme_id_map"]
                table = {str(symbol): [int(number) for number in ids] for symbol, ids in found.items()}
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise InputError(f"{self._path.name} is no table of phonemes: {type(error).__name__} {error}") from error
            if lacking := [symbol for symbol in (START, PAD, END) if symbol not in table]:
                raise InputError(f"{self._path.name}: the table of phonemes lacks {lacking[0]!r}")
            self._table = table
        return self._table
