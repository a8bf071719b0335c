"""The commands of a registration, and when they are called."""

from __future__ import annotations

from collections.abc import Callable

import SimpleITK as sitk

__all__ = ["Commands"]

Command = Callable[[], object] | sitk.Command


class Commands:
    """Commands in the order they were added.

    As in SimpleITK, Start, End, MultiResolutionIteration, Abort and Delete are events of the registration, Iteration is
    an event of the optimiser, and a command added for Any hears whatever the optimiser says: that it was modified,
    started, iterated, ended and was deleted.
    """

    def __init__(self) -> None:
        self._commands: list[tuple[int, Command]] = []

    def add(self, event: int, command: Command) -> None:
        """Call `command` at each `event` from now on."""
        self._commands.append((event, command))

    def has(self, event: int) -> bool:
        """Whether a command waits for exactly this event."""
        return any(awaited == event for awaited, _ in self._commands)

    def clear(self) -> None:
        """Forget all commands."""
        self._commands.clear()

    def from_registration(self, event: int) -> None:
        """Call the commands that wait for this event of the registration."""
        self._call(event)

    def from_optimizer(self, event: int = sitk.sitkAnyEvent) -> None:
        """Call the commands that wait for this event of the optimiser, and those that wait for any."""
        self._call(event, sitk.sitkAnyEvent)

    def _call(self, *events: int) -> None:
        for awaited, command in list(self._commands):
            if awaited in events and (awaited, command) in self._commands:  # one called before may have removed it
                command.Execute() if isinstance(command, sitk.Command) else command()
