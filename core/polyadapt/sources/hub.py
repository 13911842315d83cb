"""Files of a model hub: from the local cache, or from the network where the user allowed it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from polyadapt.errors import MissingExtraError, UserError

CONFIGS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Everything small that configs and tokenizers are made of."""


def hub_file(repository: str, filename: str, allow_download: bool, reference: str) -> Path | None:
    """One file of a repository; None when the repository has no such file.

    Raises:
        UserError: it is not on this machine and may not, or could not, be downloaded.
    """
    _need_hub()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename, local_files_only=not allow_download))
    except LocalEntryNotFoundError as error:
        raise _absent(repository, allow_download, reference, error) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _absent(repository, allow_download, reference, error) from error


def hub_folder(repository: str, patterns: tuple[str, ...], allow_download: bool, reference: str, revision: str = "") -> Path:
    """The folder that holds the files of a repository which match any pattern.

    Raises:
        UserError: it is not on this machine and may not, or could not, be downloaded.
    """
    _need_hub()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns), local_files_only=not allow_download))
    except (OSError, ValueError) as error:
        raise _absent(repository, allow_download, reference, error) from error


def _need_hub() -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingExtraError("huggingface_hub", "transformers", "a model from a hub")


def _absent(repository: str, allow_download: bool, reference: str, error: Exception) -> UserError:
    if allow_download:
        return UserError(f"{reference}: {repository} could not be downloaded ({str(error).splitlines()[0]}); check its name and the network")
    return UserError(
        f"{reference}: the weights of {repository} are not on this machine; add ?allow_download=true, name a local folder, or add ?pretrained=false for random weights"
    )
