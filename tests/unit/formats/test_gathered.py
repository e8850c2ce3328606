from __future__ import annotations

import random
import sys

from headrace.formats.gathered import Gathered


def test_its_text_is_that_of_the_pieces() -> None:
    rng = random.Random(7)
    gathered, pieces = Gathered(("first",)), ["first"]
    for number in range(1000):
        some = [f"{number}é" for _ in range(rng.choice((0, 1, 1, 1, 2, 50)))]
        if len(some) == 1:
            gathered.add(some[0])
        else:
            gathered.add_all(some)
        pieces += some
        assert gathered.text == "".join(pieces)


def test_a_long_text_takes_hardly_more_than_its_characters() -> None:
    gathered = Gathered()
    for number in range(10_000):
        gathered.add(f"{number:04}")
    assert sys.getsizeof(gathered) + sum(map(sys.getsizeof, gathered)) < 2 * 40_000
