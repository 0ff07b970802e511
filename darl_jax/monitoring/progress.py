"""Live line on the terminal, by tqdm."""

import logging
import sys
from typing import Any

from tqdm import tqdm

_FORMAT = "{desc} {n:,}/{total:,} ({percentage:.1f}%){postfix}  {rate_fmt}  ETA {remaining} |{bar}|"


class Progress:
    """A line that is redrawn in place on standard error, and erased at the end.

    Where standard error is no terminal, nothing is shown. Log messages and whatever else is printed
    erase the line first; the next `update` draws it again. So an error stands last, whether it is
    printed before or after `close`. Rate and ETA count everything since this object was created,
    evaluations and checkpoints included. Of several processes one is active.
    """

    def __init__(
        self, total: int, *, start: int = 0, unit: str = "step", active: bool = True
    ) -> None:
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=unit,
            bar_format=_FORMAT,
            file=sys.stderr,
            disable=None if active else True,  # None: where the file is no terminal
            leave=False,
            dynamic_ncols=True,
            mininterval=0.2,
            miniters=1,
            smoothing=0,  # the mean since the beginning
        )
        self._replaced: Any = None
        if self._bar.disable:
            return
        self._clearer = _Clearer(self._bar)
        if logging.root.handlers:  # A bare root logger has a handler of last resort.
            logging.root.handlers.insert(0, self._clearer)
        self._replaced = sys.stderr
        sys.stderr = _Stderr(self._replaced, self._bar)

    def update(self, done: int, note: str = "") -> None:
        """Sets the count, and draws the line if it is 0.2 s old. Cheap enough for every step."""
        if not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Erases the line."""
        self._bar.close()
        if self._replaced is not None:
            sys.stderr, self._replaced = self._replaced, None
            if self._clearer in logging.root.handlers:
                logging.root.handlers.remove(self._clearer)


class _Clearer(logging.Handler):
    """Erases the line before the handlers after it print.

    tqdm's `logging_redirect_tqdm` replaces `StreamHandler`s, and absl's handler is none.
    """

    def __init__(self, bar: tqdm) -> None:
        super().__init__()
        self._bar = bar

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - logging's signature
        self._bar.clear()


class _Stderr:
    """Standard error that erases the line before each line of text."""

    def __init__(self, stream: Any, bar: tqdm) -> None:
        self._stream = stream
        self._bar = bar
        self._line_began = False

    def write(self, text: str) -> int:
        if not self._line_began:
            self._bar.clear()
        self._line_began = not text.endswith("\n")
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
