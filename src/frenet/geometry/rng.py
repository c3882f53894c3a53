"""Named random streams: the numbers depend only on the seed and the names."""

import functools
import hashlib
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt16, UInt64
from scipy import special
from torch import Tensor

# Numbers that a thread draws at once: few enough for its cache, and enough that threads seldom wait
# for the interpreter.
BLOCK = 2**18
# The same on a GPU, which wants many.
DEVICE_BLOCK = 2**24
# Indices of 16 bits in a word of 64.
PER_WORD = 4
# The finaliser of splitmix64: shifts to the right, the first two followed by a product.
MIXING = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
    (np.uint64(31), None),
)


def generator(seed: int, *names: str | int) -> torch.Generator:
    """CPU generator seeded with sha256 of ``(seed, names)``.

    torch keeps 32 bits of a seed: among N streams two are the same with probability N^2 / 2^33,
    which is 1e-5 for 300 streams and 1% for 10,000.

    Args:
        seed: the seed of the whole run.
        names: the purpose of the stream, from general to specific, e.g. ``"search", 3``.

    Returns:
        A new generator, so that two calls with the same arguments give the same numbers.

    >>> first, again, other = (generator(0, "search", i) for i in (1, 1, 2))
    >>> first.initial_seed() == again.initial_seed(), first.initial_seed() == other.initial_seed()
    (True, False)
    """
    return torch.Generator().manual_seed(
        int.from_bytes(_digest(seed, names)[:8], "little", signed=True)
    )


def torch_seed(seed: int) -> int:
    """A seed that torch accepts: the same one if it does, otherwise 63 bits of its sha256.

    >>> torch_seed(7), torch_seed(2**64) == torch_seed(2**64 + 1)
    (7, False)
    """
    if -(2**63) <= seed < 2**64:
        return seed
    return int.from_bytes(_digest(seed, ())[:8], "little") >> 1


class Stream(NamedTuple):
    """Random numbers of mean 0 and variance 1 at any position of an endless stream.

    They depend on seed, names and position alone: every device, every partition into ranges and
    every number of threads gives the same bits. Words of 64 bits come from a counter,
    mix(key + gamma i), mix the finaliser of splitmix64; each holds four indices of 16 bits into a
    table of numbers. So there are only integer operations and a look-up.

    Attributes:
        key: where the counter begins, 64 bits.
        gamma: its step, odd, 64 bits.
        signs: +1 and -1 in place of normal numbers.

    Source: Steele, Lea, Flood (2014), Fast splittable pseudorandom number generators.

    >>> whole, part = torch.empty(9), torch.empty(5)
    >>> for start, out in ((0, whole), (4, part)):
    ...     stream(7, "search", 1).fill(out, start)
    >>> torch.equal(whole[4:], part)
    True
    """

    key: int
    gamma: int
    signs: bool = False

    def fill(self, out: Float[Tensor, " n"], start: int = 0) -> None:
        """Write the numbers from position ``start`` on into a contiguous float32 tensor.

        On a CPU with as many threads as torch uses, on a GPU by itself.
        """
        if out.is_cuda:
            for first, last in ranges(start, start + len(out), DEVICE_BLOCK):
                out[first - start : last - start] = self.draw_on(out.device, first, last)
            return
        array = out.numpy() if out.device.type == "cpu" else np.empty(len(out), np.float32)

        def write(first: int, last: int) -> None:
            array[first - start : last - start] = self.block(first, last)

        side_by_side(write, ranges(start, start + len(out)))
        if out.device.type != "cpu":
            out.copy_(torch.from_numpy(array))

    def block(self, start: int, stop: int, scale: float = 1.0) -> Float[np.ndarray, " n"]:
        """At most ``BLOCK`` numbers times a scale, in memory that this thread's next block uses."""
        first, last = start // PER_WORD, -(-stop // PER_WORD)
        words = _scratch.words[: last - first]
        np.multiply(_scratch.count[: last - first], np.uint64(self.gamma), out=words)
        words += np.uint64((self.key + first * self.gamma) % 2**64)
        index = _mixed(words).view(np.uint16)[start - PER_WORD * first :][: stop - start]
        return _looked_up(index, _scaled(self.signs, scale))

    def draw_on(self, device: torch.device, start: int, stop: int) -> Float[Tensor, " n"]:
        """The same numbers by operations of torch, on any device that has 64-bit integers."""
        first, last = start // PER_WORD, -(-stop // PER_WORD)
        words = torch.arange(last - first, device=device).mul_(_signed(self.gamma))
        words += _signed((self.key + first * self.gamma) % 2**64)
        for shift, factor in MIXING:
            # The shift of signed numbers drags the sign along.
            words ^= (words >> int(shift)) & ((1 << 64 - int(shift)) - 1)
            if factor is not None:
                words *= _signed(int(factor))
        index = words.view(torch.int16)[start - PER_WORD * first :][: stop - start]
        return _table_on(device, self.signs)[index.to(torch.int64) & 0xFFFF]


class _Scratch(threading.local):
    """Memory of one thread: fresh memory for every block costs more than the numbers in it."""

    def __init__(self) -> None:
        self.words, self.shifted = (np.empty(BLOCK // PER_WORD + 1, np.uint64) for _ in range(2))
        self.count = np.arange(BLOCK // PER_WORD + 1, dtype=np.uint64)
        self.index = torch.empty(BLOCK, dtype=torch.int32)
        self.numbers = torch.empty(BLOCK)


_scratch = _Scratch()


def _mixed(words: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """The finaliser of splitmix64, in place."""
    shifted = _scratch.shifted[: words.size].reshape(words.shape)
    for shift, factor in MIXING:
        np.right_shift(words, shift, out=shifted)
        words ^= shifted
        if factor is not None:
            words *= factor
    return words


def _looked_up(
    index: UInt16[np.ndarray, "..."], numbers: Float[Tensor, "65536"]
) -> Float[np.ndarray, "..."]:
    """The numbers at these places of the table, in this thread's memory."""
    # torch looks up twice as fast as NumPy, by indices of 32 bits, and in this thread alone.
    whole, out = _scratch.index[: index.size], _scratch.numbers[: index.size]
    np.copyto(whole.numpy().reshape(index.shape), index)
    torch.index_select(numbers, 0, whole, out=out)
    return out.numpy().reshape(index.shape)


def fill_rows(streams: Sequence[Stream], out: Float[Tensor, "n d"]) -> None:
    """Write the numbers of every stream, from its beginning on, into a row.

    Short rows are drawn together: for a few thousand numbers each call of NumPy costs as much as
    the numbers.
    """
    rows, d = out.shape
    words = -(-d // PER_WORD)
    together = (BLOCK // PER_WORD) // max(1, words)
    if out.device.type != "cpu" or together < 2:
        for one, row in zip(streams, out, strict=True):
            one.fill(row)
        return
    for first in range(0, rows, together):
        group = streams[first : first + together]
        keys, gammas = (
            np.array([getattr(one, name) for one in group], np.uint64)[:, None]
            for name in ("key", "gamma")
        )
        drawn = _scratch.words[: len(group) * words].reshape(len(group), words)
        np.multiply(_scratch.count[:words], gammas, out=drawn)
        drawn += keys
        index = _mixed(drawn).view(np.uint16)[:, :d]
        numbers = _looked_up(index, _scaled(group[0].signs, 1.0))
        out[first : first + len(group)] = torch.from_numpy(numbers)


def stream(seed: int, *names: str | int, signs: bool = False) -> Stream:
    """The stream with this seed and these names: key and gamma are 128 bits of their sha256.

    >>> stream(0, "search", 3) == stream(0, "search", 3), stream(0, "search", 3).gamma % 2
    (True, 1)
    """
    digest = _digest(seed, names)
    gamma = int.from_bytes(digest[8:16], "little") | 1
    # Steps with long runs of equal bits mix too little, as splitmix64 found.
    if (gamma ^ gamma >> 1).bit_count() < 24:
        gamma ^= 0xAAAAAAAAAAAAAAAA
    return Stream(int.from_bytes(digest[:8], "little"), gamma, signs)


@functools.cache
def table(signs: bool = False) -> Float[np.ndarray, "65536"]:
    """The 65,536 equally likely numbers of a stream, ascending, of mean 0 and variance 1.

    Normal: the mid-quantiles of the standard normal distribution, scaled. They end at 4.325, beyond
    which a normal number lies once in 65,000 draws; their fourth moment is 2.9992 in place of 3.
    Signs: half of them -1, half +1; a sign is that of the normal number at the same position.
    """
    half = (np.arange(2**15) + 0.5) / 2**16
    lower = special.ndtri(half)  # the tail that is accurate; the other half mirrors it
    lower /= np.sqrt(np.mean(lower**2))
    if signs:
        lower = -np.ones_like(lower)
    return np.concatenate([lower, -lower[::-1]]).astype(np.float32)


@functools.cache
def _table_on(device: torch.device, signs: bool) -> Float[Tensor, "65536"]:
    return torch.from_numpy(table(signs)).to(device)


@functools.lru_cache(maxsize=8)
def _scaled(signs: bool, scale: float) -> Float[Tensor, "65536"]:
    """The table times a scale: the products of its numbers with it, rounded to float32."""
    return torch.from_numpy(table(signs) * np.float32(scale))


def ranges(start: int, stop: int, size: int = BLOCK) -> list[tuple[int, int]]:
    """The parts of a range that is not empty, cut at multiples of ``size``."""
    cuts = [start, *range((start // size + 1) * size, stop, size), stop]
    return list(itertools.pairwise(cuts))


def side_by_side(task: Callable[..., object], portions: Sequence[tuple[Any, ...]]) -> None:
    """Call ``task`` with every portion, in as many threads as torch uses."""
    threads = min(torch.get_num_threads(), len(portions))
    if threads < 2:
        for portion in portions:
            task(*portion)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(task, *zip(*portions, strict=True)))


def _signed(word: int) -> int:
    """The signed number with the same 64 bits."""
    return word - (word >> 63 << 64)


def _digest(seed: int, names: tuple[str | int, ...]) -> bytes:
    plain = tuple(name if isinstance(name, str) else int(name) for name in names)
    return hashlib.sha256(repr((int(seed), *plain)).encode()).digest()
