# SPDX-License-Identifier: Apache-2.0
"""Clients without a session id that come back to the place they left: the same request again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from mars.gateway.places import Places

MAX_KEYS = 10_000


class Comebacks:
    """First requests whose clients left while held, by what they asked.

    Identical requests of different clients are interchangeable here: each takes one of
    the places that were left, in order.

    Args:
        places: the queue that keeps the places.
        max_keys: requests remembered.
    """

    def __init__(self, places: Places, max_keys: int = MAX_KEYS) -> None:
        self._places = places
        self._max_keys = max_keys
        self._left: OrderedDict[bytes, list[str]] = OrderedDict()

    def left(self, tenant: str, body: bytes, session_id: str) -> None:
        """The client of this request is gone; its session has a place still."""
        if session_id not in self._places:
            return
        self._left.setdefault(_key(tenant, body), []).append(session_id)
        if len(self._left) > self._max_keys:
            self._left.popitem(last=False)

    def find(self, tenant: str, body: bytes) -> str | None:
        """The session whose place this request may take."""
        if not self._left:
            return None
        key = _key(tenant, body)
        waiting = self._left.get(key, [])
        found = None
        while waiting and found is None:
            place = self._places.get(waiting.pop(0))
            found = place.session_id if place is not None and not place.waiters else None
        if not waiting:
            self._left.pop(key, None)
        return found


def _key(tenant: str, body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16, key=tenant.encode()[:64]).digest()
