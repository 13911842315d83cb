"""Edits: small changes at ports. One closed list of kinds, one engine that applies them."""

from polyadapt.edits.attach import Attachments, attachments_of
from polyadapt.edits.bank import Bank, stacked_edits
from polyadapt.edits.edit import Edit, edits_from_slots, parse_slot, slot_name, slots_of
from polyadapt.edits.form import Form, Lowered
from polyadapt.edits.kinds import KINDS, kind_of

__all__ = ["KINDS", "Attachments", "Bank", "Edit", "Form", "Lowered", "attachments_of", "edits_from_slots", "kind_of", "parse_slot", "slot_name", "slots_of", "stacked_edits"]
