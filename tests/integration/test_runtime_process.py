# SPDX-License-Identifier: Apache-2.0
"""The runtime service as a real process: waiting, all models, load and unload on demand, bad starts."""

import asyncio
import socket
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest

from dovetail.pb import oip
from tests.fakes.fake_artifact_cache import FakeArtifactCache
from tests.fakes.node_process import NodeProcess
from tests.fakes.tiny_artifacts import digits_artifact
from tests.fixtures_node import publish

IMAGE = np.zeros((1, 1, 8, 8), np.float32)


def process(service: FakeArtifactCache, tmp_path: Path, *arguments: str) -> NodeProcess:
    return NodeProcess("runtime_svc", tmp_path / "runtime", service.address, *arguments)


async def test_it_waits_for_the_compiler_service_and_says_so(service: FakeArtifactCache, tmp_path: Path) -> None:
    await publish(service, digits_artifact())
    await service.stop()
    node = process(service, tmp_path, "--models", "digits")

    async with node.running():
        line = await node.until_indexed("UNAVAILABLE", "no answer from the compiler service")
        assert line.name == "digits"
        assert not (await node.ask("ServerReady", oip.ServerReadyRequest())).ready
        assert "offers.lost" in node.events()

        await service.start()
        await node.until_ready()

        assert (await node.ask("ServerReady", oip.ServerReadyRequest())).ready
        assert await node.stop() == 0


async def test_all_registered_models_are_served_those_that_come_later_too(
    service: FakeArtifactCache, tmp_path: Path
) -> None:
    await publish(service, digits_artifact())
    node = process(service, tmp_path)
    async with node.running(DOVETAIL_MODEL_POLL_S="0.1"):
        await node.until_ready("digits")

        await publish(service, digits_artifact(model="later"))
        await node.until_ready("later")

        assert (await node.infer(IMAGE, "later")).shape == (1, 10)


async def test_named_models_only_are_served(service: FakeArtifactCache, tmp_path: Path) -> None:
    await publish(service, digits_artifact())
    await publish(service, digits_artifact(model="other"))
    node = process(service, tmp_path, "--models", "other")

    async with node.running():
        await node.until_ready("other")

        assert not (await node.ask("ModelReady", oip.ModelReadyRequest(name="digits"))).ready


async def test_models_are_unloaded_and_loaded_on_demand(service: FakeArtifactCache, tmp_path: Path) -> None:
    await publish(service, digits_artifact())
    node = process(service, tmp_path)
    async with node.running(DOVETAIL_MODEL_POLL_S="0.05"):
        await node.until_ready()

        await node.ask("RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="digits"))
        assert not (await node.ask("ModelReady", oip.ModelReadyRequest(name="digits"))).ready
        await service.wait_for_lists(3)  # polls, which must not bring it back
        assert not (await node.ask("ModelReady", oip.ModelReadyRequest(name="digits"))).ready

        await node.ask("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="digits"))
        assert (await node.ask("ModelReady", oip.ModelReadyRequest(name="digits"))).ready


async def test_loading_an_unknown_model_says_that_there_is_none(service: FakeArtifactCache, tmp_path: Path) -> None:
    node = process(service, tmp_path)
    async with node.running():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.ask("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="nobody"))

        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "failed to load 'nobody'" in str(caught.value.details())


async def test_a_load_gives_an_artifact_that_failed_another_chance(service: FakeArtifactCache, tmp_path: Path) -> None:
    await publish(service, digits_artifact(wrong_goldens=True))
    node = process(service, tmp_path)
    async with node.running():
        await node.until_indexed("UNAVAILABLE", "does not reproduce its goldens")

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.ask("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="digits"))

        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "does not reproduce its goldens" in str(caught.value.details())
        assert "failed here before" not in str(caught.value.details())


async def test_bad_settings_are_all_told_and_nothing_starts(tmp_path: Path, service: FakeArtifactCache) -> None:
    node = NodeProcess("runtime_svc", tmp_path / "runtime", "nowhere", "--threads", "-1", "--models", "BAD!")

    with pytest.raises(AssertionError, match="exited with 2") as caught:
        async with node.running():
            pass

    assert all(name in str(caught.value) for name in ("DOVETAIL_COMPILER", "DOVETAIL_THREADS", "DOVETAIL_MODELS"))
    assert not (tmp_path / "runtime").exists()


async def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path, service: FakeArtifactCache) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        node = process(service, tmp_path, "--address", f"127.0.0.1:{port}")

        with pytest.raises(AssertionError, match=rf"(?s)exited with 1.*port {port} on 127.0.0.1 is already in use"):
            async with node.running():
                pass


async def test_metrics_are_served_where_they_are_wanted(service: FakeArtifactCache, tmp_path: Path) -> None:
    await publish(service, digits_artifact())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node = process(service, tmp_path, "--metrics", f"127.0.0.1:{port}")
    async with node.running():
        await node.until_ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()

    assert 'dovetail_model_info{model="digits"' in text
    assert "\ndovetail_response_cache_limit_bytes 67108864\n" in text
