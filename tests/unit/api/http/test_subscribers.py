from api.http.subscribers import Subscribers


def test_subscribers_come_back_over_more_time_the_more_there_are() -> None:
    subscribers = Subscribers(5000)
    assert subscribers.retry(100) == b"retry: 100\n\n"
    subscribers.add("key", 5000)
    waits = [int(subscribers.retry(100).removeprefix(b"retry: ")) for _ in range(1000)]
    assert min(waits) >= 100
    assert 5000 < max(waits) <= 10_100
    assert sum(wait < 1100 for wait in waits) < 300  # a tenth of them comes back in the first second
    subscribers.add("key", -5000)
    assert subscribers.number == 0
