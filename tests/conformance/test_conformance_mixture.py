# SPDX-License-Identifier: Apache-2.0
"""No request gets the answer to another one, whatever is asked beside it: all kinds of models, sizes, ways and ends.

Clients ask at random and at once: every datatype, raw and typed; batches under every policy, padded, split, in buckets;
pipelines, the cache, Python models, sequences, decoupled models; by calls and on streams; with deadlines, timeouts and
priorities; some give up. Every reply is compared with what its own request asks for.

    DOVETAIL_WRONG_ANSWER_EXAMPLES=20000 pytest -s tests/conformance/test_conformance_mixture.py

looks for longer; the number of requests that were checked is printed.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.dialogue import Asker, Target
from tests.conformance.mixture import NEEDED, PLAIN, Client

EXAMPLES = int(os.environ.get("DOVETAIL_WRONG_ANSWER_EXAMPLES", "25"))


@pytest.mark.timeout(120 if EXAMPLES <= 100 else 0)
def test_every_reply_is_the_answer_to_its_own_request(asker: Asker, target: Target) -> None:
    asker.need(*NEEDED)
    checked: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        models=st.lists(st.sampled_from(PLAIN), min_size=1, max_size=4, unique=True),
        seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=8),
    )
    def ask(models: Sequence[str], seeds: Sequence[int]) -> None:
        clients = [Client(asker.stub, models, seed, own=target.own, number=place) for place, seed in enumerate(seeds)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
            checked.update(client.outcomes)

    started_s = time.monotonic()
    ask()
    rate = checked.total() / (time.monotonic() - started_s)
    sys.stderr.write(f"\nrequests checked: {checked.total()}, {rate:.0f}/s, wrong answers: 0; {dict(checked)}\n")

    assert checked["answered"] > 5 * EXAMPLES
    assert checked["cancelled"] or not target.own
