"""Two nodes of one job, a rendezvous of its own and a real S3 server: nodes vanish and come back, the store is lost."""

import json
import os
import signal

import pytest

from tests.support.nodes import Node, Rendezvous
from tests.support.prepared import make_prepared
from tests.support.training import small_config

pytestmark = [pytest.mark.s3, pytest.mark.slow]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("data") / "d").path


@pytest.fixture
def rendezvous(tmp_path):
    store = Rendezvous(tmp_path)
    yield store
    store.kill()


@pytest.fixture
def job(tmp_path, dataset, rendezvous, s3_server):
    """`job(name, steps)` makes a node of this test's job; `job.records()` are its starts and ends in S3."""
    run = tmp_path.name.replace("_", "-")
    storage = s3_server.storage("giblet")
    made = []

    def make(name, steps=100_000):
        configuration = small_config(
            run={"name": run},
            training={"epochs": 1_000_000, "max_steps": steps, "learning_rate": 1e-3, "validate_every_epochs": 10**6},
            checkpoint={"url": "s3://giblet", "save_every_epochs": 0, "save_every_steps": 20, "keep_last": 2},
            telemetry={"hang_seconds": 90.0, "metrics_port": 0},
        )
        made.append(Node(tmp_path, name, configuration, dataset, rendezvous.endpoint, **s3_server.environment()))
        return made[-1]

    def records():
        found = {}
        for info in storage.list(f"runs/{run}/starts/"):
            found[info.key.rpartition("/")[2]] = json.loads(storage.get(info.key))
        return found

    make.records, make.storage, make.run = records, storage, run
    yield make
    for one in made:
        one.end()


def freeze(node, number):
    """A signal to the whole node: its launcher, the process that forks, its ranks."""
    for pid in (node.process.pid, *node.everything()):
        os.kill(pid, number)


def test_a_node_that_vanishes_is_gone_on_without_and_welcomed_back(job):
    one, two = job("one"), job("two")
    one.until(lambda: one.said("met .*nodes=2") and (one.said("INFO step") or two.said("INFO step")))
    freeze(two, signal.SIGSTOP)
    met_alone = len([line for line in one.text().splitlines() if "nodes=1 " in line])
    one.until(lambda: one.text().count("nodes=1 ") > met_alone)
    step = one.step()
    one.until(lambda: one.step() > step)  # alone, and it trains
    both = one.text().count("nodes=2 ")
    freeze(two, signal.SIGCONT)
    one.until(lambda: one.text().count("nodes=2 ") > both)
    resumed = one.text().count("INFO resumed") + two.text().count("INFO resumed")
    one.until(lambda: one.text().count("INFO resumed") + two.text().count("INFO resumed") > resumed)
    for node in (one, two):
        node.signal(signal.SIGTERM)
    assert [one.exit_code(), two.exit_code()] == [143, 143], one.text() + two.text()
    ends = {name: end for name, end in job.records().items() if "end" in name}
    causes = [end["cause"] for end in ends.values()]
    assert "node_lost" in causes
    assert "rescaled" in causes  # it came back: the others saved first
    assert causes[-1] == "stopped"


def test_the_rendezvous_store_is_lost_and_comes_back_empty(job, rendezvous):
    one, two = job("one", 4000), job("two", 4000)
    one.until(lambda: one.said("met .*nodes=2") and max(one.step(), two.step()) > 0)
    rendezvous.kill()
    one.until(lambda: one.said("store is away"))
    step = max(one.step(), two.step())
    one.until(lambda: max(one.step(), two.step()) > step)  # nobody needs it to train
    both = one.text().count("nodes=2 ")
    rendezvous.start()
    one.until(lambda: one.text().count("nodes=2 ") > both)
    resumed = one.text().count("INFO resumed") + two.text().count("INFO resumed")
    one.until(lambda: one.text().count("INFO resumed") + two.text().count("INFO resumed") > resumed)
    assert job.records()["1.end.json"]["cause"] in ("rescaled", "node_lost")
    one.signal(signal.SIGTERM)
    assert one.exit_code() == 143, one.text()
    two.until(lambda: two.text().count("nodes=1 ") > 0)
    assert rendezvous.kill(signal.SIGTERM) == 0
