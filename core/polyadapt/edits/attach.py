"""Attachment: forms held by a root module, and the hooks that apply their edits at ports.

Nothing of the base is replaced or copied. Hooks stand at the modules of the ports; what they apply is
read from the active forms, so switching between named adapters moves no tensor. Detaching
removes the hooks and leaves the root as it was, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from polyadapt.edits.edit import Edit, refuse_repeated
from polyadapt.edits.form import Form
from polyadapt.edits.frozen import Frozen
from polyadapt.edits.hooks import Hooks
from polyadapt.edits.kinds import kind_of
from polyadapt.edits.kinds.module import structure_of
from polyadapt.edits.patches import BaseParameters
from polyadapt.edits.statistics import keeping_statistics
from polyadapt.errors import UserError, unknown
from polyadapt.sites import Ports
from polyadapt.sources.custom import call

HOLDER = "polyadapt"


class Attachments(nn.Module):
    """Named forms on one root module.

    It becomes the root's submodule `polyadapt`, so that the trainable tensors appear among the root's
    parameters: any optimiser, data-parallel wrapper or trainer finds them there.
    """

    def __init__(self, root: nn.Module, ports: Ports, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.forms = nn.ModuleDict()
        self._root = [root]  # in a list, so that torch does not register a circle
        self.base = BaseParameters(root if backbone is None else backbone, ports)
        self.ports = ports
        self._active: tuple[str, ...] = ()
        self._table: dict[tuple[str, str], list[Edit]] | None = None
        self._handles: list[Any] = []
        self._hooks: Hooks | None = None
        self._seen: set[tuple[str, str]] | None = None
        self._frozen: Frozen | None = None
        self.context: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input unchanged: a root that is an `nn.Sequential` calls whatever it holds."""
        return x

    @property
    def root(self) -> nn.Module:
        return self._root[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all attached forms."""
        return tuple(self.forms)

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the forms whose edits apply now."""
        return self._active

    def add(self, name: str, form: Form, activate: bool = True) -> None:
        """Attach a form under a name.

        Raises:
            UserError: the name is taken or not a legal module name, or an edit does not fit; nothing was attached.
        """
        if name in self.forms or not name or "." in name or hasattr(nn.ModuleDict, name):
            raise UserError(f"adapter name {name!r} is {'taken' if name in self.forms else 'not usable'}; choose another (letters, digits, _ and -)")
        check_edits(form.edits(), self.ports)
        if not self.forms:
            self._install()
        self.forms[name] = form
        if not activate:
            return
        try:
            self.activate(name)
        except Exception:
            self.remove(name)
            raise

    def remove(self, name: str) -> Form:
        """Detach one form; with the last one the root is as it was before the first."""
        form = self._form(name)
        self.activate(*(other for other in self._active if other != name))
        del self.forms[name]
        if not self.forms:
            self._uninstall()
        return form

    def remove_all(self) -> None:
        """Detach everything."""
        for name in dict.fromkeys((*reversed(self._active), *self.forms)):  # patches come off in the opposite order
            self.remove(name)

    def activate(self, *names: str) -> None:
        """Make exactly these forms apply, each once, in the order of switching on; none for the bare base. Independent of how many tensors they hold.

        Raises:
            UserError: a name that is not attached, or patches that cannot be switched; what was active still is.
        """
        wanted = tuple(dict.fromkeys(names))
        coming = [self._form(name) for name in wanted if name not in self._active]
        switch(self.base, [self._form(name) for name in reversed(self._active) if name not in wanted], coming)
        self._active = tuple(sorted(wanted, key=lambda name: self._active.index(name) if name in self._active else len(self._active)))
        self._table = None

    @contextlib.contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """`activate` within a block."""
        before = self._active
        self.activate(*names)
        try:
            yield
        finally:
            self.activate(*before)

    def same_edits(self) -> Callable[[], contextlib.AbstractContextManager[None]]:
        """A context for blocks that run again in the backward pass: the edits of the present forward, as tensors of its graph."""
        return partial(self._held, self._table)

    def silent(self) -> contextlib.AbstractContextManager[None]:
        """No edit is applied within the block, and nothing is switched: weights that a form has moved stay moved, with their gradients."""
        return self._held({})

    @contextlib.contextmanager
    def _held(self, table: dict[tuple[str, str], list[Edit]] | None) -> Iterator[None]:
        before, self._table = self._table, table
        try:
            yield
        finally:
            self._table = before

    @contextlib.contextmanager
    def counting(self) -> Iterator[set[tuple[str, str]]]:
        """Collect (sort of port, key of edit) of everything that is applied within the block."""
        self._seen = set()
        try:
            yield self._seen
        finally:
            self._seen = None

    def check_seen(self, inputs: Any) -> None:
        """Dry forwards in training and evaluation mode; every active edit must be applied in both.

        `inputs` are a mapping of named tensors, a tuple of positional ones, or one tensor.

        Raises:
            UserError: naming the sites that a forward never reached.
        """
        wanted = {(kind_of(edit.kind).port, edit.key) for name in self._active for edit in self._form(name).edits()}
        training = self.training
        try:
            for mode in (True, False):
                self.train(mode)
                with torch.no_grad(), keeping_statistics(self), self.counting() as seen:
                    call(self.root, inputs)
                missing = sorted(key for _, key in wanted - seen)
                if missing:
                    raise UserError(
                        f"{len(missing)} edits are never reached in {'training' if mode else 'evaluation'} mode: {', '.join(missing[:5])}; "
                        "the library skips these modules (a fast path, perhaps); choose other sites"
                    )
        finally:
            self.train(training)

    def edits_at(self, port: str, site: str) -> list[Edit]:
        """Active edits at one port, in the order of their kinds."""
        table = self._table if self._table is not None else self._make_table()
        return table.get((port, site), [])

    def saw(self, edit: Edit) -> None:
        """Note that an edit was applied; only while somebody counts."""
        if self._seen is not None:
            self._seen.add((kind_of(edit.kind).port, edit.key))

    def trainable(self) -> list[nn.Parameter]:
        """Parameters that train: of the active forms, and of the base where a form trains that."""
        return [parameter for parameter in self.root.parameters() if parameter.requires_grad]

    def _form(self, name: str) -> Form:
        if name not in self.forms:
            raise unknown("adapter", name, self.forms)
        form = self.forms[name]
        assert isinstance(form, Form)
        return form

    def _make_table(self) -> dict[tuple[str, str], list[Edit]]:
        return by_port(edit for name in self._active for edit in self._form(name).edits())

    def _install(self) -> None:
        root = self.root
        if hasattr(root, HOLDER):
            raise UserError(f"the module already has something called {HOLDER!r}; detach it first")
        self._frozen = Frozen(root)
        root.add_module(HOLDER, self)
        self._hooks = Hooks(self)
        self._handles = [root.register_forward_pre_hook(self._before), root.register_forward_hook(self._after, always_call=True), *self._hooks.install()]

    def _uninstall(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._hooks, self._table = [], None, None
        delattr(self.root, HOLDER)
        if self._frozen is not None:
            self._frozen.restore(self.root)

    def _before(self, root: nn.Module, args: Any) -> None:
        # A trainer that calls root.train() must not wake dropout or batch statistics of the frozen base.
        if root.training and not any(self._form(name).trains_base for name in self._active):
            adapters = self.training
            root.train(False)
            self.train(adapters)
        elif root.training:
            # Running statistics are buffers of the base: training its weights does not move them.
            for module in root.modules():
                if getattr(module, "running_mean", None) is not None:
                    module.training = False
        self._table = self._make_table()

    def _after(self, root: nn.Module, args: Any, output: Any) -> None:
        self._table = None


def attachments_of(root: nn.Module, ports: Ports | None = None, backbone: nn.Module | None = None) -> Attachments:
    """The attachments of a root module; made on first use when `ports` are given.

    Raises:
        UserError: nothing is attached and no ports were given.
    """
    held = getattr(root, HOLDER, None)
    if isinstance(held, Attachments):
        return held
    if ports is None:
        raise UserError("nothing is attached to this module")
    return Attachments(root, ports, backbone)


def without_edits(root: nn.Module) -> contextlib.AbstractContextManager[None]:
    """`Attachments.silent` of a module that may have edits, or none."""
    held = getattr(root, HOLDER, None)
    return held.silent() if isinstance(held, Attachments) else contextlib.nullcontext()


def switch(base: BaseParameters, going: Sequence[Form], coming: Sequence[Form]) -> None:
    """Switch forms off and others on.

    Raises:
        UserError: patches do not fit the base, or come off in the wrong order. After any error what had been switched is
            switched back.
    """
    undo: list[Callable[[BaseParameters], None]] = []
    try:
        for form in going:
            form.switch_off(base)
            undo.append(form.switch_on)
        for form in coming:
            form.switch_on(base)
            undo.append(form.switch_off)
    except Exception:
        for step in reversed(undo):
            step(base)
        raise


def by_port(edits: Iterable[Edit]) -> dict[tuple[str, str], list[Edit]]:
    """Edits by sort of port and site, in the order of their kinds."""
    table: dict[tuple[str, str], list[Edit]] = {}
    for edit in edits:
        table.setdefault((kind_of(edit.kind).port, edit.site), []).append(edit)
    for row in table.values():
        row.sort(key=lambda edit: kind_of(edit.kind).order)
    return table


def check_edits(edits: Sequence[Edit], ports: Ports) -> None:
    """Refuse two edits of one key, and an edit that does not fit its port.

    Raises:
        UserError: with the key, and with expected and found shapes.
    """
    refuse_repeated(edits)
    for edit in edits:
        check_edit(edit, ports)


def check_edit(edit: Edit, ports: Ports) -> None:
    """Refuse an edit whose port does not exist or whose tensors do not fit it.

    Raises:
        UserError: with expected and found shapes.
    """
    kind = kind_of(edit.kind)
    port = ports.get(kind.port, edit.site)
    if edit.variant not in kind.variants and edit.kind != "module":
        raise UserError(f"{edit.key}: kind {edit.kind!r} has no variant {edit.variant!r}; it has {', '.join(map(repr, kind.variants))}")
    if edit.kind == "module":
        structure_of(edit)
        return
    expected = kind.shapes(port, edit.variant)
    if set(expected) != set(edit.tensors):
        raise UserError(f"{edit.key}: expected tensors {sorted(expected)}, found {sorted(edit.tensors)}")
    bound: dict[str, int] = {}
    for name, shape in expected.items():
        found = tuple(edit.tensors[name].shape)
        if not edit.tensors[name].is_floating_point():
            raise UserError(f"{edit.key}.{name}: expected numbers of floating point, found {str(edit.tensors[name].dtype).removeprefix('torch.')}")
        if len(found) != len(shape) or any(not _fits(size, want, bound) for size, want in zip(found, shape, strict=True)):
            raise UserError(f"{edit.key}.{name}: expected shape {_words(shape)}, found {found}")


def _fits(size: int, want: int | str, bound: dict[str, int]) -> bool:
    if isinstance(want, int):
        return size == want
    return bound.setdefault(want, size) == size


def _words(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"
