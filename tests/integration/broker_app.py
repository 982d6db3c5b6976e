"""The application that the broker's tests run: `python -m celery -A tests.integration.broker_app worker`.

What its tasks do is told by lines in the file `BROKER_TEST_LOG`, which no fault of a broker can touch.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task

from worker import broker
from worker.settings import Settings

settings = Settings()
app = Celery("broker-test")
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    task_default_queue=broker.CONTROL_QUEUE,
    task_create_missing_queues=False,
    task_queues=broker.queues(settings),
    **broker.configuration(settings),
)
broker.install(app)


def tell(event: str, name: str) -> None:
    """Append one line; O_APPEND keeps the lines of many processes apart."""
    with open(os.environ["BROKER_TEST_LOG"], "a", encoding="ascii") as log:  # noqa: PTH123 - one write, one line
        log.write(f"{time.time():.3f} {event} {name} {os.getpid()}\n")


@app.task(name="work")
def work(name: str, seconds: float = 0.0, *, held: bool = False) -> None:
    """Take a while, or (`held`) until there is a file of this name beside the log."""
    tell("start", name)
    time.sleep(seconds)
    released = Path(os.environ["BROKER_TEST_LOG"]).with_name(f"{name}.released")
    while held and not released.exists():
        time.sleep(0.02)
    tell("end", name)


@app.task(name="fail_once", bind=True, max_retries=3)
def fail_once(self: Task[Any, Any], name: str, countdown: float) -> None:
    """Ask to be run again later, the first time."""
    tell("start", name)
    if self.request.retries == 0:
        raise self.retry(countdown=countdown)
    tell("end", name)
