"""Claims: who measures what at this moment, so that processes which share a store measure nothing twice."""

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import sqlalchemy as sa

from evaluator.measurement import Protocol
from evaluator.tables import claims
from space import Architecture

# After so long a claim of another machine is taken for forgotten; one of this machine ends with its process.
FORGOTTEN_SECONDS = 600.0
Claimed = Literal["pair", "slopes"]


def this_process() -> str:
    """Return how this process signs what it claims."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_forgotten(owner: str, claimed_at: float) -> bool:
    """Return whether nobody works any more on what a process claimed, at a time in seconds since the epoch."""
    host, _, process = owner.rpartition(":")
    if host != socket.gethostname():
        return time.time() - claimed_at > FORGOTTEN_SECONDS
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def claim_key(architecture: Architecture, protocol: Protocol, what: Claimed) -> dict[str, str]:
    """Return the columns that tell a claim from others."""
    suffix = "" if what == "pair" else f" {what}"
    return {"fingerprint": architecture.fingerprint, "protocol": protocol.fingerprint + suffix}


def claim(connection: sa.Connection, key: Mapping[str, str], insert_new: Callable[..., Any]) -> bool:
    """Make a claim, renew one's own or take over one that is forgotten; return false where another's holds.

    Args:
        connection: in a transaction.
        key: of the claim.
        insert_new: the dialect's statement that inserts a row unless it is there.
    """
    mine = {"owner": this_process(), "claimed_at": time.time()}
    new = insert_new(claims, {**key, **mine}).returning(claims.c.owner)
    if connection.execute(new).one_or_none() is not None:
        return True
    held = connection.execute(sa.select(claims).filter_by(**key)).one_or_none()
    if held is None or (held.owner != mine["owner"] and not is_forgotten(held.owner, held.claimed_at)):
        return False
    again = claims.update().filter_by(**key, owner=held.owner, claimed_at=held.claimed_at).values(**mine)
    return bool(connection.execute(again).rowcount)
