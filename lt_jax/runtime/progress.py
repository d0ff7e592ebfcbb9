"""Progress of long work: a bar on a terminal, one line a stage elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from lt_jax.runtime import distributed


def say(line: str) -> None:
    """One line about the run, for whoever watches it."""
    if distributed.is_first():
        print(line, file=sys.stderr, flush=True)


_SAID: dict[str, str] = {}  # of each topic, the last line


def say_of(name: str, topic: str, line: str) -> None:
    """`say`s the line of `name`, unless the same was said last of the topic, of whichever name."""
    if _SAID.get(topic) != line:
        _SAID[topic] = line
        say(f"{name}: {line}")


class Progress:
    """Shows stage, step, rate and time left of one piece of work; a context manager, too."""

    def __init__(self, stage: str, total: int, unit: str = "step", start: int = 0):
        """Starts at `start` of `total`."""
        self._stage, self._unit, self._start, self._done = stage, unit, start, start
        self._since = time.perf_counter()
        self._bar: tqdm | None = None
        if sys.stderr.isatty() and distributed.is_first():
            self._bar = tqdm(total=total, initial=start, desc=stage, unit=unit, dynamic_ncols=True)

    def of(self, done: int, total: int) -> None:
        """Moves to `done`, where the total turns out only now."""
        if self._bar is not None:
            self._bar.total = total
        self.update(done)

    def update(self, done: int, **values: float) -> None:
        """Moves to `done` of the total and shows `values` beside it."""
        if self._bar is not None:
            self._bar.update(done - self._done)
            if values:
                self._bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
        self._done = done

    def close(self) -> None:
        """Closes the bar, or prints the stage's line where there is no terminal."""
        if self._bar is not None:
            self._bar.close()
            return
        seconds = time.perf_counter() - self._since
        done = self._done - self._start
        rate = done / max(seconds, 1e-9)
        say(f"{self._stage}: {done} {self._unit}s in {seconds:.1f} s ({rate:.1f}/s)")

    def __enter__(self) -> "Progress":
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes; work that failed prints no line."""
        if kind is None or self._bar is not None:
            self.close()
