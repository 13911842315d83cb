"""References: parsing, looking up, options, and what is said about mistakes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from polyadapt.errors import UserError
from polyadapt.sources.card import ModelCard
from polyadapt.sources.catalog import CARDS
from polyadapt.sources.families import core_families
from polyadapt.sources.load import load, resolve
from polyadapt.sources.options import TinyOptions
from polyadapt.sources.reference import find_card, parse_reference


def test_parts_of_a_reference() -> None:
    found = parse_reference("hf:./my folder/x.y?task=features&labels=a%26b,c+d")
    assert (found.scheme, found.name, found.base) == ("hf", "./my folder/x.y", "hf:./my folder/x.y")
    assert found.options == {"task": "features", "labels": "a&b,c d"}


def test_a_colon_may_be_part_of_the_name() -> None:
    assert parse_reference("hf:C:\\models\\bert").name == "C:\\models\\bert"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("minilm", "no scheme"),
        ("timm:", "no name"),
        ("timm:x?", "not an option"),
        ("timm:x?seed", "not an option"),
        ("timm:x?=3", "not an option"),
        ("timm:x?seed=1&seed=2", "twice"),
        ("module:0123", "pass the module itself"),
    ],
)
def test_malformed_references_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_reference(text)


@pytest.mark.parametrize(("text", "nearest"), [("polyadapt:minlm", "'polyadapt:minilm'"), ("tim:resnet18", "'timm'"), ("polyadapt:tiny-vt", "'polyadapt:tiny-vit'")])
def test_unknown_names_get_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(UserError, match=nearest):
        find_card(parse_reference(text), CARDS)


def test_an_exact_card_wins_over_its_scheme() -> None:
    exact = ModelCard("timm:special", "", "", "any", TinyOptions, "")
    assert find_card(parse_reference("timm:special?seed=1"), (*CARDS, exact)) is exact
    assert find_card(parse_reference("timm:other"), (*CARDS, exact)).reference == "timm:"


def test_options_become_values() -> None:
    card, name, options = resolve("timm:resnet18?pretrained=false&labels=a,b&num_classes=2", given={"seed": 3})
    assert (card.reference, name) == ("timm:", "resnet18")
    assert (options.pretrained, options.labels, options.num_classes, options.seed) == (False, ("a", "b"), 2, 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        ("polyadapt:minilm?maximum_token=3", {}, "did you mean 'maximum_tokens'"),
        ("polyadapt:minilm?maximum_tokens=many", {}, "'maximum_tokens'.*'many'"),
    ],
)
def test_wrong_options_are_refused(text: str, given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(text, given=given)


def test_every_family_has_a_tiny_model_and_every_reference_is_there_once() -> None:
    references = [card.reference for card in CARDS]
    assert len(set(references)) == len(references)
    assert {f"polyadapt:tiny-{family}" for family in core_families()} <= set(references)
    assert {"timm:", "hf:", "torchaudio:", "diffusers:"} <= set(references)


def test_packaged_cards_are_complete() -> None:
    packaged = [card for card in CARDS if card.package is not None]
    assert len(packaged) == 5
    for card in packaged:
        assert card.package is not None and card.offline and card.family in core_families()
        assert len(card.package.requirements) == len(card.package.wheel_sha256)
        assert card.licence == card.package.licence and "(" in card.licence, "a licence names its holder"
        for kept in card.package.files:
            assert len(kept.sha256) == 64 and kept.size_bytes > 0


def test_the_catalogue_imports_no_library() -> None:
    code = "import sys, polyadapt.sources.catalog; print([name for name in ('torch', 'numpy', 'transformers', 'timm', 'tokenizers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def make_wrong(card: ModelCard, name: str, options: TinyOptions) -> object:
    return SimpleNamespace(name=name)


def test_a_loader_must_return_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyadapt.errors import PluginError

    monkeypatch.setitem(sys.modules, "loader_under_test", SimpleNamespace(make_wrong=make_wrong))
    with pytest.raises(PluginError, match="returned SimpleNamespace"):
        load(ModelCard("x:y", "", "", "any", TinyOptions, "loader_under_test:make_wrong"), "y", TinyOptions())
    with pytest.raises(PluginError, match="there is no loader_under_test:nothing"):
        load(ModelCard("x:y", "", "", "any", TinyOptions, "loader_under_test:nothing"), "y", TinyOptions())
    with pytest.raises(PluginError, match="cannot be imported"):
        load(ModelCard("x:y", "", "", "any", TinyOptions, "polyadapt.no_such_module:load"), "y", TinyOptions())


def test_a_loader_may_take_families(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyadapt.sources.load import open_reference

    seen: list[list[str]] = []

    def spy(card: ModelCard, name: str, options: TinyOptions, families: Iterable[object] | None = None) -> object:
        from polyadapt.sources.tiny import load as build

        cards = list(families or ())
        seen.append([family.id for family in cards])  # type: ignore[attr-defined]
        return build(card, name, options, cards)  # type: ignore[arg-type]

    monkeypatch.setitem(sys.modules, "loader_under_test", SimpleNamespace(spy=spy))
    card = ModelCard("x:tiny-vit", "", "", "vit", TinyOptions, "loader_under_test:spy")
    open_reference("x:tiny-vit", [card], families=[core_families()["vit"]])
    assert seen == [["vit"]]
