"""Fixtures that several rooms share."""

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from workers.storage.store import Store

# Before torch is loaded, and for all processes that tests start: they are several at once on few
# cores. What a test compares bit for bit does not lean on it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Where Python may write no bytecode, every process that tests start compiles torch and all
    that comes with it again, which takes longer than most tests: here they share it."""
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode = False
        sys.pycache_prefix = str(config.rootpath / ".pytest_cache" / "bytecode")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


@pytest.fixture(scope="session", autouse=True)
def _image_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images of tests lie beside their other files, not in the home folder."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SOUPFLEET_CACHE", str(tmp_path_factory.mktemp("image-cache")))
        yield


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """host:port of an S3 server in this process; credentials reach pyarrow by environment."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            environment.delenv(proxy, raising=False)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        _, port = server.get_host_and_port()
        yield f"127.0.0.1:{port}"
        server.stop()


@pytest.fixture
def s3_uri(s3_endpoint: str) -> str:
    """URI of an empty folder in a fresh bucket, as a user would write it."""
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=f"http://{s3_endpoint}").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/experiments?endpoint_override={s3_endpoint}&scheme=http"


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind; what holds for one holds for the other."""
    if request.param == "local":
        return Store(str(tmp_path / "store"))
    uri = request.getfixturevalue("s3_uri")
    return Store(uri, cache_dir=str(tmp_path / "cache")).child("store")
