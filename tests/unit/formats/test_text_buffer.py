from __future__ import annotations

import random
import sys

from headrace.formats.text_buffer import TextBuffer


def test_its_text_is_that_of_the_pieces() -> None:
    rng = random.Random(7)
    buffer, pieces = TextBuffer(("first",)), ["first"]
    for number in range(1000):
        some = [f"{number}é" for _ in range(rng.choice((0, 1, 1, 1, 2, 50)))]
        if len(some) == 1:
            buffer.add(some[0])
        else:
            buffer.add_all(some)
        pieces += some
        assert buffer.text == "".join(pieces)


def test_a_long_text_takes_hardly_more_than_its_characters() -> None:
    buffer = TextBuffer()
    for number in range(10_000):
        buffer.add(f"{number:04}")
    assert sys.getsizeof(buffer) + sum(map(sys.getsizeof, buffer)) < 2 * 40_000
