# SPDX-License-Identifier: Apache-2.0
"""Replies shared through a Redis cluster and through a primary that Sentinels watch: real servers, real kills."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from dovetail.clock import ManualClock
from dovetail.store.redis_connection import connect
from runtime_svc.response_cache.redis_store import PAUSE_S, PREFIX, RedisStore
from tests.fakes.redis_nodes import START_TIMEOUT_S, Cluster, Watched, running

SERVING = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
USER = re.findall(r"```acl\n(.*?)```", SERVING, re.DOTALL)[0].split("user dovetail ")[1].split()
REPLIES = {f"{number:064x}": b"reply %d" % number for number in range(60)}


async def put_all(store: RedisStore, clock: ManualClock) -> None:
    """Until all are kept: a store gives up what takes too long, as much does on a busy machine."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    for key, data in REPLIES.items():
        while await store.get(key) != data:
            assert time.monotonic() < deadline_s
            clock.advance(PAUSE_S)
            store.put_later(key, data)
            await store.settled()


async def found_again(store: RedisStore, clock: ManualClock, key: str) -> bytes:
    """What is under a key, once Redis answers again; each failure costs a pause, which passes at once."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while (data := await store.get(key)) is None:
        assert time.monotonic() < deadline_s
        clock.advance(PAUSE_S)
        await asyncio.sleep(0.05)
    return data


async def test_replies_are_spread_over_a_cluster_and_outlive_a_primary() -> None:
    cluster, clock = Cluster(), ManualClock()
    with running(*cluster.nodes):
        cluster.form()
        for node in cluster.nodes:
            node.say("ACL", "SETUSER", "dovetail", *USER, "+command", "+cluster|slots")
        store = RedisStore(connect(cluster.url.replace("://", "://dovetail:change-me-replies@")), clock=clock)
        await put_all(store, clock)
        spread = [int(node.say("DBSIZE")) for node in cluster.primaries]
        failures = store.failures
        doomed = cluster.primaries[0]  # the one that has a replica
        doomed.say("WAIT", 1, 5000)
        moved = next(key for key in REPLIES if cluster.owner_of(PREFIX + key) is doomed)
        doomed.pause()

        lost = await store.get(moved)
        assert lost is None
        again = await found_again(store, clock, moved)
        await store.close()

    assert all(spread)
    assert sum(spread) == len(REPLIES)
    assert again == REPLIES[moved]
    assert store.failures > failures


async def test_replies_outlive_a_primary_that_sentinels_replace() -> None:
    watched, clock = Watched(), ManualClock()
    with running(*watched.nodes):
        watched.settle()
        store = RedisStore(connect(watched.url), clock=clock)
        await put_all(store, clock)
        watched.primary.say("WAIT", 1, 5000)
        watched.primary.kill()

        key, data = next(iter(REPLIES.items()))
        assert await store.get(key) is None
        assert await found_again(store, clock, key) == data
        await store.close()
