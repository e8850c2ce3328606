from bench.systems import start_order, turns


def test_each_place_in_the_order_is_taken_equally_often() -> None:
    systems, rounds = ("a", "b", "c"), range(4)
    orders = [(start_order(systems, number)[0], turns(systems, number)[0]) for number in rounds]
    assert sorted(orders) == [("a", "a"), ("a", "c"), ("c", "a"), ("c", "c")]
    assert all(sorted(order(systems, number)) == [*systems] for order in (start_order, turns) for number in rounds)
