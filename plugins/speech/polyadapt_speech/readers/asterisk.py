"""`data:asterisk-prompts` reads the telephone prompts of Asterisk (CC-BY-SA-3.0, CC-BY-3.0) as Debian packages them.

A folder such as `en_US_f_Allison` holds one speaker's prompts in G.722 at 16 kHz. The same file name means the same
prompt in every language; transcripts come for English only.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path

from polyadapt.data.dataset import Dataset, Example, natural_key
from polyadapt.data.readers.debian import find_directory
from polyadapt.data.readers.recordings import language_codes, prepared
from polyadapt.errors import UserError, unknown
from polyadapt_speech.readers.card import AsteriskOptions

DATA = "data:asterisk-prompts"
PACKAGE = "asterisk-core-sounds-{language}-g722"
DIRECTORIES = ("/usr/share/asterisk/sounds",)
TRANSCRIPTS = "/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
LICENCES = {"en": "CC-BY-SA-3.0", "es": "CC-BY-SA-3.0", "fr": "CC-BY-SA-3.0", "it": "CC-BY-3.0", "ru": "CC-BY-3.0"}
NO_SPEECH = ("silence/", "beep", "ascending-2tone", "descending-2tone")


def read(rest: str, options: AsteriskOptions) -> Dataset:
    """Read the prompts: label as asked for, text where it is known, extra columns `language`, `speaker` and `prompt`.

    Prompts without speech are left out.

    Raises:
        UserError: no package is installed, a language is not there, or the transcripts cannot be read.
    """
    root = find_directory(DATA, PACKAGE.format(language="en"), DIRECTORIES, options.directory)
    folders: dict[str, list[Path]] = {}
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.is_symlink() and "_" in folder.name:
            folders.setdefault(folder.name.partition("_")[0], []).append(folder)
    if not folders:
        raise UserError(f"{DATA}: no folder such as en_US_f_Allison below {root}; run: apt install {PACKAGE.format(language='en')}")
    examples: list[Example] = []
    languages = language_codes(options.language, sorted(folders))
    for language in languages:
        if language not in folders:
            hint = f"; run: apt install {PACKAGE.format(language=language)}" if language in LICENCES else ""
            raise UserError(f"{unknown(f'language of {DATA}', language, folders)}{hint}")
        texts = _transcripts(options.transcripts) if language == "en" else {}
        for folder in folders[language]:
            examples.extend(_prompts(folder, language, texts, options.label))
    licences = sorted({LICENCES.get(language, "") for language in languages} - {""})
    return Dataset(f"{DATA} ({', '.join(languages)})", prepared(examples, options), "audio", licence=" AND ".join(licences))


def parse_transcripts(text: str) -> dict[str, str]:
    """Texts by prompt: lines `name: text`; lines that begin with `;` are comments, and `[…]` is no speech."""
    found = {}
    for line in text.splitlines():
        name, colon, said = line.partition(":")
        said = said.strip()
        if colon and said and not line.startswith(";") and not said.startswith("["):
            found[name.strip()] = said
    return found


def _prompts(folder: Path, language: str, texts: Mapping[str, str], label: str) -> list[Example]:
    speaker = folder.name.rpartition("_")[2]
    examples = []
    for path in sorted(folder.rglob("*.g722"), key=lambda path: natural_key(path.relative_to(folder).as_posix())):
        prompt = path.relative_to(folder).with_suffix("").as_posix()
        if not prompt.startswith(NO_SPEECH):
            name = f"{folder.name}/{prompt}.g722"
            extra = {"language": language, "speaker": speaker, "prompt": prompt}
            examples.append(Example(name, path, extra.get(label), texts.get(prompt), extra, name))
    return examples


def _transcripts(file: str) -> dict[str, str]:
    """English transcripts; none where Debian's file is not installed."""
    path = Path(file or TRANSCRIPTS).expanduser()
    if not path.is_file():
        if file:
            raise UserError(f"{DATA}: no file {file!r}; correct the option transcripts, or leave it out and run: apt install asterisk-core-sounds-en")
        return {}
    try:
        content = path.read_bytes()
        return parse_transcripts((gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8"))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{DATA}: {path} cannot be read ({error}); run: apt install --reinstall asterisk-core-sounds-en") from error
