"""What a call costs, before and after it: a price for every model, and a bound of what a prompt may weigh that needs no tokenizer.

All amounts are whole numbers and round up, by less than one nano-USD and one GPU millisecond a call.
"""

import math
import re
from typing import NamedTuple

import msgspec

from serving.catalog import Model

_MILLION = 1_000_000
_SLOW_TOKENS_PER_S = 10  # by this a GPU-hour price reserves where no throughput was measured; a slower call is charged no more
_new = tuple.__new__  # a third of the time that a named tuple's own takes, twice a request
TEMPLATE_TOKENS = 1024  # what a chat template may add of its own: system prompt, tool instructions, today's date
MEDIA_TOKENS = 16_384  # an image, sound or video; Qwen2.5-VL's largest image is 12,845,056 pixels / 28^2
_MEDIA = (b'"image_url"', b'"input_audio"', b'"audio_url"', b'"video_url"', b'"image"', b'"file"', b'"input_image"', b'"input_file"')
_MAYBE_MEDIA = re.compile(rb'"(?:image|input_|audio|video|file)')  # how each of them begins: one search instead of eleven
_MEDIA_LISTS = (b'"images"', b'"audio"', b'"videos"')


class Charge(NamedTuple):
    """What a call used, in the units of `budgets` and in their order, so that a budget's unit is an index into it."""

    nanousd: int
    tokens: int
    gpu_ms: int
    calls: int
    concurrent: int


class Price(NamedTuple):
    """Nano-USD per million tokens read and written, and GPU time per token (ns times GPUs).

    `wall_gpus` above 0 says that no throughput is known: then the time from reserve to settle is charged, on so many GPUs, and the rest is
    the worst case.
    """

    prompt: int
    completion: int
    gpu_ns: int
    wall_gpus: int = 0

    def charge(self, prompt_tokens: int, completion_tokens: int) -> Charge:
        """What so many tokens cost."""
        tokens = prompt_tokens + completion_tokens
        return _new(Charge, (-(-(prompt_tokens * self.prompt + completion_tokens * self.completion) // _MILLION), tokens,
                             -(-tokens * self.gpu_ns // _MILLION), 1, 1))  # fmt: skip

    def linear(self, prompt_tokens: int, answers: int) -> tuple[tuple[int, int, int], ...]:
        """The same as (fixed, per token of all answers, scale) as `Charge` has them: (fixed + tokens x per) / scale, rounded up."""
        return ((prompt_tokens * self.prompt, answers * self.completion, _MILLION), (prompt_tokens, answers, 1),
                (prompt_tokens * self.gpu_ns, answers * self.gpu_ns, _MILLION), (1, 0, 1), (1, 0, 1))  # fmt: skip

    def wall(self, worst: Charge, seconds: float) -> Charge:
        """What a call that took so long costs, never more than what was reserved for it."""
        gpu_ms = min(worst.gpu_ms, math.ceil(seconds * 1000 * self.wall_gpus))
        return worst._replace(gpu_ms=gpu_ms, nanousd=-(-worst.nanousd * gpu_ms // max(1, worst.gpu_ms)))


def priced(usd_per_million_in: float, usd_per_million_out: float) -> Price:
    """The price of a model that is paid by the token."""
    return Price(_nanousd(usd_per_million_in), _nanousd(usd_per_million_out), 0)


def price_of(model: Model) -> Price:
    """The price of a hosted model. `usd_per_gpu_hour` is divided by what one replica reads and writes (`tokens_per_s`), or, where that was
    not measured, by the time that each call takes. A model on the CPU counts as one GPU."""
    price = model.price
    gpus = max(1, model.gpus)
    rate = price.tokens_per_s
    if price.usd_per_million_input_tokens is not None and price.usd_per_million_output_tokens is not None:
        by_token = priced(price.usd_per_million_input_tokens, price.usd_per_million_output_tokens)
        return by_token if rate is None else by_token._replace(gpu_ns=math.ceil(gpus * 1e9 / rate))
    assert price.usd_per_gpu_hour is not None, "the catalog checks that every model has one price"
    speed = rate or _SLOW_TOKENS_PER_S
    token = _nanousd(price.usd_per_gpu_hour * gpus / 3600 / speed * _MILLION)
    return Price(token, token, math.ceil(gpus * 1e9 / speed), wall_gpus=0 if rate else gpus)


def _nanousd(usd: float) -> int:
    return math.ceil(usd * 1e9)


def prompt_bound(body: bytes) -> int:
    """At least as many tokens as an engine can make of the text in a JSON body.

    A byte-level BPE tokenizer, and SentencePiece with byte fallback, make at most one token of a byte of text, as bytes are their smallest
    pieces and merging only takes tokens away. JSON spells text in at least as many bytes as UTF-8 does: an escape is longer than what it
    stands for. So the bytes of the body are a bound for all text in it, keys and quotes included; what a chat template adds of its own is
    `TEMPLATE_TOKENS`. Lists of token ids spell a token in two bytes or more.

    Not covered by the proof: media, which count as `MEDIA_TOKENS` each whatever their size, and tokenizers that first normalise text into
    something longer (NFKC: rare characters, up to 11 times). The engine's own `max_model_len` holds in any case: take the lesser of both.
    """
    if b"\\" in body and b"\\u" in body:  # an escape could spell a key
        body = msgspec.json.encode(msgspec.json.decode(body))
    if _MAYBE_MEDIA.search(body) is None:
        return len(body) + TEMPLATE_TOKENS
    parts = sum(map(body.count, _MEDIA))
    if any(name in body for name in _MEDIA_LISTS):
        parts += body.count(b",") + 1
    return len(body) + TEMPLATE_TOKENS + parts * MEDIA_TOKENS
