"""Training forms: rows over specialists, and the first stage with all languages, their heads and the weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.edits.patches import BaseParameters
from polyadapt.methods.full.method import FullForm
from polyadapt.methods.head import HeadForm
from polyadapt.sites import OpPort, module_name
from polyadapt_speech.master_asr.assembly import choice
from polyadapt_speech.master_asr.card import MasterAsrOptions
from polyadapt_speech.master_asr.specialists import Specialists

START = 0.1  # of the rows: about half of the specialists are chosen, and a few steps decide otherwise (ours)


class RowsForm(Form):
    """A row T_l a language and site over specialists; the row of one language is in force at a time.

    Rows are stored as T / alpha: with Adam, whose steps have the size of the learning rate, T moves alpha times as fast.
    """

    def __init__(self, ports: Sequence[OpPort], specialists: Specialists, languages: int, options: MasterAsrOptions, generator: torch.Generator) -> None:
        super().__init__()
        self._ports, self._alpha, self._gradient = list(ports), options.row_rate, options.straight_through
        self.specialists = specialists
        self.rows = nn.ModuleList()
        for _ in range(languages):
            start = {module_name(port.site): nn.Parameter(START / self._alpha * torch.randn(options.specialists, generator=generator)) for port in ports}
            self.rows.append(nn.ParameterDict(start))
        self.language = 0

    def edits(self) -> list[Edit]:
        return [self.specialists.edit(port, choice(self.row(port.site), self._gradient)) for port in self._ports]

    def row(self, site: str) -> torch.Tensor:
        """T_l of the language in force at a site, [K]."""
        rows = self.rows[self.language]
        assert isinstance(rows, nn.ParameterDict)
        row: torch.Tensor = self._alpha * rows[module_name(site)]
        return row

    def set_row(self, site: str, row: torch.Tensor) -> None:
        """Give the language in force a row at a site."""
        rows = self.rows[self.language]
        assert isinstance(rows, nn.ParameterDict)
        rows[module_name(site)].data.copy_(row / self._alpha)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(port.site for port in self._ports)

    def trained(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}

    def load_trained(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.load_state_dict(dict(tensors), strict=False)


class SharedForm(Form):
    """The first stage: rows of all languages, a head each, and the weights below the masks."""

    trains_base = True

    def __init__(self, rows: RowsForm, heads: Mapping[str, HeadForm], weights: FullForm | None, options: MasterAsrOptions) -> None:
        super().__init__()
        self.rows, self.weights = rows, weights
        self.trains_base = weights is not None
        self.heads = nn.ModuleList(heads.values())
        self.languages = tuple(heads)
        self._options = options

    def speak(self, language: str) -> None:
        """Put a language's row and head in force."""
        self.rows.language = self.languages.index(language)

    def edits(self) -> list[Edit]:
        return [*self.rows.edits(), self.head_edit()]

    def head_edit(self) -> Edit:
        """The head of the language in force; it is stored divided by its learning rate's factor, as rows are."""
        head = self.heads[self.rows.language]
        assert isinstance(head, HeadForm)
        [edit] = head.edits()
        factor = 1.0 if head.is_cosine else self._options.head_rate
        return Edit(edit.site, edit.kind, {**edit.tensors, "weight": edit.tensors["weight"] * factor, "bias": edit.tensors["bias"] * factor})

    def resting(self, step: int) -> Collection[nn.Parameter]:
        """Parameters that do not move in a step: weights and scores take turns, weights first, and rows move in every beta-th step."""
        is_turn_of_weights = self.weights is not None and step // self._options.turn_steps % 2 == 0
        resting: list[nn.Parameter] = list(self.rows.specialists.parameters()) if is_turn_of_weights else []
        if self.weights is not None and not is_turn_of_weights:
            resting += self.weights.parameters_of_base()
        if (step + 1) % self._options.row_every_steps:
            resting += self.rows.rows.parameters()
        return resting

    def switch_on(self, base: BaseParameters) -> None:
        if self.weights is not None:
            self.weights.switch_on(base)

    def switch_off(self, base: BaseParameters) -> None:
        if self.weights is not None:
            self.weights.switch_off(base)

    def base_values(self) -> int:
        return 0 if self.weights is None else self.weights.base_values()

    def lower(self) -> list[Edit]:
        """The moved weights, which all languages share; a language's own edits follow from the rest."""
        return [] if self.weights is None else self.weights.lower()

    def trained(self) -> dict[str, torch.Tensor]:
        moved = {} if self.weights is None else {f"weights.{name}": value for name, value in self.weights.trained().items()}
        return {**super().trained(), **moved}

    def load_trained(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().load_trained({name: value for name, value in tensors.items() if not name.startswith("weights.")})
        if self.weights is not None:
            self.weights.load_trained({name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")})
