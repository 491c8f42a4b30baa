"""Reads one stream of server-sent events as a client does, and says what was wrong with it."""

import re

_STAMP = re.compile(rb'"t=(\d{19}) ')
_WORDS = re.compile(rb'"(?:content|reasoning_content|reasoning)": ?"[^"]')
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


class Stream:
    """One server-sent-event stream as it arrives: its content chunks, their delays, whether usage and `[DONE]` came."""

    __slots__ = ("carry", "chunks", "done", "first", "is_stamped", "last_stamp", "tokens", "wrong_order")

    def __init__(self, *, is_stamped: bool) -> None:
        self.is_stamped = is_stamped
        self.carry = b""
        self.chunks = 0
        self.tokens = 0
        self.last_stamp = 0
        self.first = False
        self.done = False
        self.wrong_order = False

    def feed(self, data: bytes, now_ns: int, delays_ns: list[int]) -> int:
        """How many content chunks `data` completes."""
        if self.carry:
            data = self.carry + data
        end = data.rfind(b"\n\n") + 2
        self.carry = data[end:] if end > 1 else data
        if end <= 1:
            return 0
        data = data[:end]
        if self.is_stamped:
            stamps = [int(stamp) for stamp in _STAMP.findall(data)]
            for stamp in stamps:
                self.wrong_order |= stamp < self.last_stamp
                self.last_stamp = stamp
                delays_ns.append(now_ns - stamp)
            found = len(stamps)
        else:
            found = len(_WORDS.findall(data))
        if not found or b'"completion_tokens"' in data:
            if usage := _TOKENS.findall(data):
                self.tokens = int(usage[-1])
            self.done = self.done or b"data: [DONE]" in data
        self.chunks += found
        return found

    def fault(self, chunks: int | None) -> str:
        """What was wrong with the whole stream; empty where nothing was."""
        if chunks is not None and self.chunks != chunks:
            return f"chunks_{self.chunks}_of_{chunks}"
        if self.wrong_order:
            return "chunks_out_of_order"
        if not self.tokens:
            return "usage_missing"
        return "" if self.done else "done_missing"
