"""Work in threads: in order, each item once, none begun after an end."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from saec_gpu.threads import in_threads


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    assert list(in_threads(lambda item: item * item, range(40), threads)) == [
        item * item for item in range(40)
    ]
    assert list(in_threads(lambda item: item, [], threads)) == []


def test_as_many_work_at_a_time_as_there_are_threads() -> None:
    meeting = threading.Barrier(3)  # breaks unless three come to it at once
    assert list(in_threads(lambda _: meeting.wait(timeout=60) >= 0, range(6), 3)) == [True] * 6


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_is_that_of_the_item_and_ends_the_work(threads: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("item 1")
        return item

    with pytest.raises(ValueError, match="item 1"):
        list(in_threads(work, range(10_000), threads))
    assert len(begun) < 10_000


@pytest.mark.parametrize("threads", [1, 2])
def test_who_stops_asking_waits_for_no_more_than_was_begun(threads: int) -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item:
            go_on.wait(timeout=60)
        return item

    with closing(in_threads(work, range(100), threads)) as results:
        assert next(results) == 0
        threading.Timer(0.1, go_on.set).start()
    assert len(begun) <= 1 + threads
