"""`module`: any nn.Module at a span, added to its output: h + f(x). For what no other kind expresses.

The tensors are the module's state, so their shapes are fixed. The structure comes with the edit as a live
module, rebuilt by the method that owns it, never from a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from polyadapt.edits.kinds.kind import Kind
from polyadapt.errors import UserError

if TYPE_CHECKING:
    from polyadapt.edits.edit import Edit


class Module(Kind):
    """Any module beside a span."""

    name = "module"
    port = "span"
    order = 4

    def apply(self, edit: Edit, x: torch.Tensor, h: torch.Tensor, port: Any) -> torch.Tensor:
        if edit.structure is None:
            raise UserError(f"the module at {port.site} has lost its structure; load it through the method that made it")
        result: torch.Tensor = torch.func.functional_call(edit.structure, dict(edit.tensors), (x,))
        return h + result
