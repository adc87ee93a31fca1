"""Lines of a body, however it is cut into pieces; and what the client has not read yet."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from services.common.ndjson import LINE_BYTES_MAX, Line, Splitter, Unread


def _split(*pieces: bytes) -> list[Line]:
    splitter = Splitter()
    return [line for piece in pieces for line in splitter.feed(piece)] + list(splitter.end())


@given(st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\n\n", b" ", b"", b"d\ne"])))
def test_lines_are_the_same_however_the_body_is_cut(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    expected = [
        Line(number, text.strip(b" \r")) for number, text in enumerate(body.split(b"\n"), start=1) if text.strip(b" \r")
    ]
    assert _split(*pieces) == _split(body) == expected


def test_a_line_that_is_too_long_is_told_by_its_number_and_the_next_is_whole() -> None:
    just, over = b"x" * LINE_BYTES_MAX, b"x" * (LINE_BYTES_MAX + 1)
    assert _split(just + b"\n" + over + b"\nnext") == [Line(1, just), Line(2, None), Line(3, b"next")]
    assert _split(over) == [Line(1, None)]
    assert _split(just, b"x", b"\n", b"next") == [Line(1, None), Line(2, b"next")]


def test_of_a_line_without_end_nothing_is_held() -> None:
    splitter = Splitter()
    for _ in range(1000):
        assert list(splitter.feed(b"x" * 60_000)) == []
        assert len(splitter._held) <= LINE_BYTES_MAX
    assert list(splitter.feed(b"\n{}\n")) == [Line(1, None), Line(2, b"{}")]


async def test_what_was_written_is_read_in_order_and_whole_while_more_is_written_or_afterwards() -> None:
    for together in (True, False):
        unread, written, read = Unread(), bytearray(), bytearray()

        async def write(unread: Unread = unread, written: bytearray = written) -> None:
            for number in range(300):
                piece = bytes([number % 251]) * (number * 37 % 20_000)  # over what is kept in memory, in all
                written += piece
                await unread.write(piece)
                if number % 7 == 0:
                    await asyncio.sleep(0)
            await unread.end()

        writing = asyncio.create_task(write())
        if not together:
            await writing
        async for piece in unread.pieces():
            read += piece
        await writing
        assert read == written
        unread.close()
