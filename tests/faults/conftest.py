"""Servers of the suite, and the `cluster` of a scenario."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from migrations import upgrade
from tests.faults.cluster import HERE, SHORT_LEASE, Cluster
from tests.faults.oracle import check_clean
from tests.faults.proxy import TcpProxy
from tests.faults.servers import PostgresServer, RedisServer

SEED = int(os.environ.get("BGPO_FAULTS_SEED", "0")) or int.from_bytes(os.urandom(3), "big")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them are marked, and may take long on a busy machine."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that scenarios may kill."""
    with tempfile.TemporaryDirectory(prefix="bgpo-pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = PostgresServer(Path(folder))
        server.start()
        try:
            server.template = server.new_database()
            upgrade(server.url(server.template))
            yield server
        finally:
            server.remove()


@pytest.fixture(scope="session")
def stand_in_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root for trainers that never open the model."""
    root = tmp_path_factory.mktemp("models")
    (root / "tiny").mkdir()
    (root / "tiny" / "config.json").write_text("{}")
    return root


MakeCluster = Callable[..., AbstractContextManager[Cluster]]


@pytest.fixture
def cluster(request: pytest.FixtureRequest, sqlite_template: Path, stand_in_models: Path) -> MakeCluster:
    """`with cluster("sqlite", workers=2) as c`: a running service, taken down and looked after at the end."""

    @contextmanager
    def make(
        database: str = "sqlite",
        *,
        workers: int = 1,
        short_lease: bool = False,
        real: bool = False,
        redis_proxy: bool = False,
        database_proxy: bool = False,
        **settings: object,
    ) -> Iterator[Cluster]:
        folder = Path(tempfile.mkdtemp(prefix="bgpo-faults-"))
        with ExitStack() as stack:
            postgres: PostgresServer | None = None
            if database == "sqlite":
                (folder / "bgpo.db").write_bytes(sqlite_template.read_bytes())
                name, url = "", f"sqlite:///{folder / 'bgpo.db'}"
            else:
                postgres = request.getfixturevalue("postgres")
                postgres.ensure_running()
                name = postgres.new_database(postgres.template)
                url = postgres.url(name)
            redis = RedisServer(folder)
            redis.start()
            stack.callback(redis.kill)
            between = {
                "redis": TcpProxy(redis.port) if redis_proxy else None,
                "database": TcpProxy(postgres.port) if database_proxy and postgres is not None else None,
            }
            for proxy in between.values():
                if proxy is not None:
                    stack.callback(proxy.close)
            made = Cluster(
                folder=folder,
                redis=redis,
                postgres=postgres,
                redis_proxy=between["redis"],
                database_proxy=between["database"],
                database_name=name,
                true_database_url=url,
                trainer=(
                    sys.executable,
                    str(HERE / ("real_trainer.py" if real else "stand_in_trainer.py")),
                    str(folder),
                ),
                model_root=request.getfixturevalue("model_root") if real else stand_in_models,
                settings=(SHORT_LEASE if short_lease else {}) | settings,
                seed=SEED,
            )
            stack.callback(made.close)
            with made.evidence():
                made.start_api()
                made.start_workers(workers)
                yield made
                check_clean(made)
                made.kill_services()
                made.check_dead()
        if postgres is not None:
            postgres.ensure_running()
            postgres.drop(name)
        shutil.rmtree(folder)  # kept when anything failed

    return make
