"""TensorBoard's scalars, as a run's log writes them."""

import time
from collections.abc import Mapping
from pathlib import Path

FLUSH_SECONDS = 10
"""What TensorBoard shows may be older by so much: a flush waits for the disk."""


class EventFile:
    """A file of scalars in `folder`, for TensorBoard. `OSError` comes out where it is caused.

    tensorboardX's own SummaryWriter writes in another thread. A full disk ends that thread, and the
    training, which goes on, then waits for it for ever. `purge_step` hides what a run that was
    killed had written from that step on.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = -float("inf")
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=purge_step, session_log=start))

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Writes the scalars of one step."""
        values = [self._summary.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        summary = self._summary(value=values)
        self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=summary))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()
