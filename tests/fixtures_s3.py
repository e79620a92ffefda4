# SPDX-License-Identifier: Apache-2.0
"""A real S3-compatible server (moto's, over HTTP) for tests: one for each test process, a bucket for each test."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from uuid import uuid4

import pytest

SECRET = "secret-that-is-never-shown"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """http://host:port of the server; its credentials are in the AWS_* variables."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_REGION", "us-east-1")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_endpoint: str) -> str:
    """Address of an empty prefix in a new bucket."""
    bucket = f"test-{uuid4().hex}"
    with urllib.request.urlopen(urllib.request.Request(f"{s3_endpoint}/{bucket}", method="PUT")):
        return f"s3://{bucket}/some/prefix?endpoint={s3_endpoint}"
