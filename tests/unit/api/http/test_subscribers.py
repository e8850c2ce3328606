from api.http.subscribers import Subscribers


def test_subscribers_come_back_over_more_time_the_more_there_are() -> None:
    subscribers = Subscribers(5000)
    assert subscribers.retry(100) == b"retry: 100\n\n"
    subscribers.add("key", 5000)
    waits = [int(subscribers.retry(100).removeprefix(b"retry: ")) for _ in range(1000)]
    assert min(waits) >= 100
    assert 10_000 < max(waits) <= 20_100
    assert sum(wait < 1100 for wait in waits) < 200  # one in twenty comes back in the first second
    subscribers.add("key", -5000)
    assert subscribers.number == 0
