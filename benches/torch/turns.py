"""Processes that take turns: one group does a step while the others wait.

A machine that others use too changes its pace within seconds, so what is compared has to be done side by side. Each step of
one group is followed by the same step of the next, and who begins changes from step to step. Cores differ too: on a machine with
16 of them equal processes took steps of 400 to 620 microseconds, each its own for as long as it ran, and within 1% of each
other on the same core.
"""

import os
import select

_READY = b"r"
_GO = b"g"
_DONE = b"d"


def share_a_core():
    """Has all threads of this process run on one core, the same for all processes that may run on the same ones."""
    core = max(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), {core})
        except ProcessLookupError:
            pass


class Player:
    """One process: made before it is started, and given to what it runs."""

    _all = []

    def __init__(self):
        self._hear, self._send = os.pipe()
        self._listen, self._answer = os.pipe()
        Player._all.append(self)

    # What the process itself calls.

    def ready(self):
        """Says that all is prepared. Nobody has a turn before everybody is."""
        # Ends that forks have of others would keep them from being seen to end.
        for player in Player._all:
            ends = (player._send, player._listen) if player is self else player._ends()
            for end in ends:
                try:
                    os.close(end)
                except OSError:
                    pass
        os.write(self._answer, _READY)

    def begin(self):
        """Waits for its turn."""
        os.read(self._hear, 1)

    def end(self):
        """Ends its turn."""
        try:
            os.write(self._answer, _DONE)
        except BrokenPipeError:
            pass

    def leave(self):
        """Has no more turns. Before whatever it does next: the referee may be waiting for it."""
        os.close(self._hear)
        os.close(self._answer)

    def __getstate__(self):
        return {"_hear": self._hear, "_answer": self._answer, "_send": -1, "_listen": -1}

    def _ends(self):
        return (self._hear, self._send, self._listen, self._answer)

    # What the referee calls.

    def leave_to_child(self):
        """Closes the ends that are the started process's."""
        os.close(self._hear)
        os.close(self._answer)

    def ends(self):
        """The ends of pipes that the started process needs."""
        return (self._hear, self._answer)

    def go(self):
        """Gives it its turn; `False` if it has ended."""
        try:
            os.write(self._send, _GO)
            return True
        except BrokenPipeError:
            return False

    def close(self):
        """Forgets it. If it waits for its turn, it goes on without."""
        os.close(self._send)
        os.close(self._listen)
        Player._all.remove(self)


def _all_heard(group, seconds_left):
    """Waits for a word of each player; `False` as soon as one has ended, or if time is up."""
    waited_for = {player._listen for player in group}
    while waited_for:
        readable, _, _ = select.select(list(waited_for), [], [], max(seconds_left(), 0.0))
        if not readable or not all([os.read(end, 1) for end in readable]):
            return False
        waited_for.difference_update(readable)
    return True


def referee(groups, seconds_left):
    """Gives each group its turns, all players of one at the same time, until only one group is left or time is up.

    `groups` are lists of players whose processes were started, and `seconds_left` says how long they may still take. A
    group of which a player ends has no more turns; the last one goes on alone.
    """
    for group in groups:
        for player in group:
            player.leave_to_child()
    playing = [group for group in groups if _all_heard(group, seconds_left)]
    number = 0
    while len(playing) > 1 and seconds_left() > 0:
        first = number % len(playing)
        for group in playing[first:] + playing[:first]:
            started = all([player.go() for player in group])
            if not (started and _all_heard(group, seconds_left)):
                playing = [other for other in playing if other is not group]
        number += 1
    for group in groups:
        for player in group:
            player.close()
