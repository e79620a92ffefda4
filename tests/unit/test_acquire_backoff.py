# SPDX-License-Identifier: Apache-2.0
"""How long to wait between attempts."""

from runtime_svc.acquire.backoff import Backoff


async def test_pauses_grow_are_jittered_and_capped_and_start_again_after_success() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    backoff = Backoff(base_s=1.0, cap_s=8.0, sleep=sleep)
    for _ in range(200):
        await backoff.pause()

    assert all(0 <= pause <= 8.0 for pause in pauses)
    assert pauses[0] <= 1.0
    assert max(pauses) > 4.0
    assert len({round(pause, 6) for pause in pauses}) > 100
    backoff.reset()
    await backoff.pause()
    assert pauses[-1] <= 1.0
