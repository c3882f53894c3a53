"""Named random streams: the numbers depend only on the seed and the names."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float


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


class Normals:
    """Standard normal numbers on the CPU, float32, in streams that depend only on seed and names.

    Philox is a counter-based generator with a key of 128 bits, so that millions of streams differ,
    and starting one costs microseconds. Every ``BLOCK`` numbers of a stream have their own
    generator, so that threads can draw in parallel. Only one stream is open at a time.

    Source: Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3.

    >>> normals = Normals()
    >>> first, other, again = (float(normals.start(7, "search", i).draw(1)[0]) for i in (0, 1, 0))
    >>> first == again, first == other
    (True, False)
    """

    BLOCK = 2**18

    def __init__(self) -> None:
        self._bits = np.random.Philox(0)
        self._numbers = np.random.Generator(self._bits)
        self._start = self._bits.state
        self.start(0)

    def start(self, seed: int, *names: str | int) -> "Normals":
        """Go to the beginning of the stream with this seed and these names; the last one ends."""
        self._seed, self._names, self._at = seed, names, 0
        # Small draws spend most of their time here: a new generator takes three times as long.
        self._start["state"]["key"] = _key(seed, names)
        self._bits.state = self._start
        self._open = self._numbers
        return self

    def draw(self, n: int) -> Float[np.ndarray, " n"]:
        """The next n numbers."""
        out = np.empty(n, np.float32)
        self.fill(out)
        return out

    def fill(self, out: Float[np.ndarray, " n"]) -> None:
        """Write the next numbers into a float32 array, with as many threads as torch uses.

        They do not depend on the portions or on the number of threads.
        """
        portions = list(self._portions(out))
        threads = min(torch.get_num_threads(), len(portions))
        if threads < 2:
            for portion in portions:
                _fill(*portion)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(_fill, *zip(*portions, strict=True)))

    def _portions(
        self, out: Float[np.ndarray, " n"]
    ) -> Iterator[tuple[np.random.Generator, Float[np.ndarray, " m"]]]:
        """The parts of the array, with the block that each one comes from."""
        done = 0
        while done < len(out):
            block, used = divmod(self._at, self.BLOCK)
            if block and not used:
                key = _key(self._seed, (*self._names, "block", block))
                self._open = np.random.Generator(np.random.Philox(key=key))
            n = min(self.BLOCK - used, len(out) - done)
            yield self._open, out[done : done + n]
            done += n
            self._at += n


def _fill(numbers: np.random.Generator, out: Float[np.ndarray, " n"]) -> None:
    numbers.standard_normal(out=out, dtype=np.float32)


def _key(seed: int, names: tuple[str | int, ...]) -> np.ndarray:
    return np.frombuffer(_digest(seed, names)[:16], np.uint64)


def _digest(seed: int, names: tuple[str | int, ...]) -> bytes:
    plain = tuple(name if isinstance(name, str) else int(name) for name in names)
    return hashlib.sha256(repr((int(seed), *plain)).encode()).digest()
