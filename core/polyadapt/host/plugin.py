"""One plugin as the host sees it: where it comes from and what became of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Plugin:
    """An entry of the group `polyadapt`, loaded or not.

    Attributes:
        name: name of the entry point; also the plugin's commands and export target.
        distribution: the installed package that brings it; empty for one handed to `Host`.
        version: version of that package.
        value: what the entry point names, `package.module`.
        state: `ok`, `failed` or `skipped`.
        error: the cause when it failed, the reason when it was skipped.
        module: the loaded module or object; None unless `ok`.
    """

    name: str
    distribution: str = ""
    version: str = ""
    value: str = ""
    state: str = "ok"
    error: str = ""
    module: object | None = None

    @property
    def described(self) -> str:
        """Name and origin for messages: `'speech' (polyadapt-speech 0.1.0)`."""
        origin = f"{self.distribution} {self.version}".strip() or "given by the caller"
        return f"{self.name!r} ({origin})"

    def fail(self, error: str) -> None:
        """Mark as failed; nothing of it is kept."""
        self.state, self.error, self.module = "failed", error, None

    def to_dict(self) -> dict[str, str]:
        """The row of `polyadapt plugins --json`."""
        return {"name": self.name, "distribution": self.distribution, "version": self.version, "state": self.state, "error": self.error}
