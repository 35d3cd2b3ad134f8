"""A run whose data, state and result all lie on an object store."""

from pathlib import Path

import boto3
import pytest
import written_dataset as written
from moto.server import ThreadedMotoServer

from infnet.train.checkpoint import load
from infnet.train.run import train
from rayrun import manifest, storage

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def bucket(monkeypatch):
    """An S3 server of its own, and the environment that names it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="runs")
    yield "s3://runs"
    server.stop()


def test_a_run_on_an_object_store_is_whole(bucket, dataset):
    storage.put(Path(dataset), f"{bucket}/data")
    config = written.config(f"inputs.data={bucket}/data", "train.epochs=1")
    out = f"{bucket}/run"
    result = train(config, out)
    manifest.verify(out)
    found = {name.partition("/")[0] for name in storage.names(out)}
    assert found == {
        "manifest.json", "config.yaml", "schema.json", "encoder", "checkpoint", "metrics.jsonl",
        "result.json", "report.html",
    }  # fmt: skip
    recommender, _, _ = load(out)
    assert not recommender.training
    assert train(config, out) == result
