"""No test reaches the network; processes on this machine may talk to each other."""

from __future__ import annotations

import os
import socket

import pytest
from pytest_socket import SocketConnectBlockedError

# TEST-NET-1 of RFC 5737: an address that no machine has.
NOWHERE = ("192.0.2.1", 80)


@pytest.mark.filterwarnings("ignore:A test tried to use")
def test_the_outside_is_blocked() -> None:
    with socket.socket() as client, pytest.raises(SocketConnectBlockedError):
        client.connect(NOWHERE)


def test_this_machine_is_allowed() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client.connect(server.getsockname())


def test_subprocesses_and_libraries_are_told_to_stay_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["PIP_NO_INDEX"] == "1"
