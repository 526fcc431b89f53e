"""Frames over a socket pair, against a peer that sends byte by byte, nonsense, or half of it."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bgpo.sandbox.inside.channel import MAX_FDS, MAX_FRAME, Channel, ChannelError


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel and the bare other end."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs:
        yield channel, theirs
    channel.close()


def frame(data: bytes, fds: int = 0) -> bytes:
    return struct.pack("!IB", len(data), fds) + data


def test_messages_arrive_whole_and_in_order(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    messages: list[Any] = [{"a": [1, None, "ü"]}, "text", 7]
    theirs.sendall(b"".join(frame(text.encode()) for text in ('{"a": [1, null, "\\u00fc"]}', '"text"', "7")))
    received: list[Any] = []
    while len(received) < 3:
        received += [message for message, _ in channel.receive()]
    assert received == messages


def test_half_a_message_is_not_waited_for(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    data = frame(b'"hello"')
    for index in range(len(data) - 1):
        theirs.sendall(data[index : index + 1])
        assert channel.receive() == []
    theirs.sendall(data[-1:])
    assert channel.receive() == [("hello", [])]


def test_a_long_message_crosses(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    other = Channel(theirs)
    text = "x" * (8 * 2**20)
    sender = threading.Thread(target=channel.send, args=(text,))
    sender.start()
    received: list[tuple[Any, list[int]]] = []
    while not received:
        received = other.receive()
    sender.join()
    assert received == [(text, [])]


def test_descriptors_go_with_their_message(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    other = Channel(theirs)
    pipes = [os.pipe() for _ in range(3)]
    for number, (reading, writing) in enumerate(pipes):
        channel.send(number, (writing,) if number != 1 else ())
        os.write(writing, str(number).encode())
        os.close(writing)
        os.close(reading) if number == 1 else None
    received: list[tuple[Any, list[int]]] = []
    while len(received) < 3:
        received += other.receive()
    assert [(number, len(fds)) for number, fds in received] == [(0, 1), (1, 0), (2, 1)]
    for number, fds in received:
        for fd in fds:
            assert not os.get_inheritable(fd)
            os.write(fd, b"!")
            os.close(fd)
            assert os.read(pipes[number][0], 2) == f"{number}!".encode()
            assert os.read(pipes[number][0], 1) == b""  # ours and theirs were the only writers
            os.close(pipes[number][0])


@pytest.mark.parametrize(
    "data",
    [frame(b"not json"), frame(b"[" * 100_000), struct.pack("!IB", MAX_FRAME + 1, 0), frame(b"1", 1), frame(b"1", 255)],
    ids=["text", "deep", "long", "no-descriptor", "descriptors"],
)
def test_nonsense_is_refused(pair: tuple[Channel, socket.socket], data: bytes) -> None:
    channel, theirs = pair
    theirs.sendall(data)
    with pytest.raises(ChannelError):
        list(iter(channel.receive, None))  # until it raises


def test_the_end_is_told(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(frame(b"1")[:3])
    theirs.close()
    channel.receive()
    with pytest.raises(EOFError):
        channel.receive()


def test_what_is_no_message_is_not_sent(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    with pytest.raises(ValueError, match="at most"):
        channel.send("x", tuple(range(MAX_FDS + 1)))
    with pytest.raises(TypeError):
        channel.send(object())
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
