"""How processes take turns in the programs of `benches/torch`."""

import os
import sys
import threading
import time
import unittest
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parents[2] / "benches" / "torch"


@unittest.skipUnless(PROGRAMS.is_dir() and hasattr(os, "fork"), "the programs are not here")
class Turns(unittest.TestCase):
    def setUp(self):
        sys.path.insert(0, str(PROGRAMS))
        self.addCleanup(sys.path.remove, str(PROGRAMS))
        import turns

        self.turns = turns
        self.words, self.said = os.pipe()

    def play(self, player, name, steps, after):
        """What a child does: it says when each of its steps begins and when it ends."""
        player.ready()
        for _ in range(steps):
            player.begin()
            os.write(self.said, f"{name}+".encode())
            time.sleep(0.002)
            os.write(self.said, f"{name}-".encode())
            player.end()
        player.leave()
        after()
        os._exit(0)

    def run_groups(self, plan, after=lambda: None):
        """Plays groups of players, each of a name and a number of steps; what they said."""
        groups, children = [], []
        for group in plan:
            players = [self.turns.Player() for _ in group]
            for player, (name, steps) in zip(players, group):
                child = os.fork()
                if child == 0:
                    try:
                        self.play(player, name, steps, after)
                    finally:
                        os._exit(1)
                children.append(child)
            groups.append(players)
        deadline = time.monotonic() + 20
        self.turns.referee(groups, lambda: deadline - time.monotonic())
        self.assertLess(time.monotonic(), deadline, "somebody was waited for in vain")
        self.children = children
        return lambda: self.collect()

    def collect(self):
        for child in self.children:
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        os.close(self.said)
        with os.fdopen(self.words) as words:
            return words.read()

    def test_one_group_at_a_time(self):
        said = self.run_groups([[("a", 4)], [("b", 4)], [("c", 4)]])()
        # Whoever begins a step ends it before anybody else begins, and who comes first changes.
        self.assertEqual(said, "a+a-b+b-c+c-" "b+b-c+c-a+a-" "c+c-a+a-b+b-" "a+a-b+b-c+c-")

    def test_players_of_a_group_go_together(self):
        said = self.run_groups([[("a", 3), ("b", 3)], [("c", 3)]])()
        steps = said.replace("c+c-", "")
        self.assertEqual((len(said) - len(steps), len(steps)), (3 * 4, 3 * 8))
        for start in range(0, len(steps), 8):
            # Both begin and end before either begins again.
            self.assertEqual({steps[place : place + 2] for place in range(start, start + 8, 2)}, {"a+", "a-", "b+", "b-"})

    def test_the_others_go_on_when_one_has_ended(self):
        said = self.run_groups([[("a", 1)], [("b", 3)], [("c", 3)]])()
        self.assertEqual((said.count("a+"), said.count("b+"), said.count("c+")), (1, 3, 3))

    def test_all_threads_of_all_processes_share_a_core(self):
        allowed = os.sched_getaffinity(0)
        ends, end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(end)
                other = threading.Thread(target=os.read, args=(ends, 1))
                other.start()
                self.turns.share_a_core()
                cores = [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]
                os._exit(0 if len(cores) > 1 and all(of == {max(allowed)} for of in cores) else 2)
            finally:
                os._exit(1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        os.close(ends)
        os.close(end)
        for pipe in (self.words, self.said):
            os.close(pipe)
        self.assertEqual(os.sched_getaffinity(0), allowed)

    def test_nobody_waits_for_a_long_answer(self):
        full, fill = os.pipe()
        collect = self.run_groups([[("a", 2)], [("b", 2)]], lambda: os.write(fill, b"x" * 200_000))
        # Both are in the midst of their answers, which nobody has read yet.
        os.close(fill)
        with os.fdopen(full, "rb") as answers:
            self.assertEqual(len(answers.read()), 400_000)
        collect()


if __name__ == "__main__":
    unittest.main()
