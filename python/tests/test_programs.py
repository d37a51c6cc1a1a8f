"""How the programs of `benches/torch` judge what they measure. PyTorch is not needed for that."""

import os
import sys
import types
import unittest
from pathlib import Path
from unittest import mock

PROGRAMS = Path(__file__).resolve().parents[2] / "benches" / "torch"


def run(losses, times=(1.0,) * 8):
    return {"losses": [float(loss).hex() for loss in losses], "times_ms": list(times), "step_ms": 1.0}


@unittest.skipUnless(PROGRAMS.is_dir(), "the programs are not here")
class Programs(unittest.TestCase):
    def setUp(self):
        torch = types.ModuleType("torch")
        torch.autograd = types.SimpleNamespace(Function=object)
        torch.distributed = types.ModuleType("torch.distributed")
        torch.nn = types.ModuleType("torch.nn")
        torch.nn.Module = object
        torch.nn.functional = types.ModuleType("torch.nn.functional")
        parts = (torch, torch.distributed, torch.nn, torch.nn.functional)
        modules = {part.__name__: part for part in parts}
        patch = mock.patch.dict(sys.modules, modules)
        patch.start()
        self.addCleanup(patch.stop)
        paths = mock.patch.object(sys, "path", [str(PROGRAMS)] + sys.path)
        paths.start()
        self.addCleanup(paths.stop)
        # One of them sets what its processes are to find in the environment.
        environment = mock.patch.dict(os.environ)
        environment.start()
        self.addCleanup(environment.stop)
        import compare
        import ddp
        import limits
        import processes
        import programs

        self.compare, self.ddp, self.limits, self.processes = compare, ddp, limits, processes
        self.programs = programs

    def test_a_program_counts_its_steps_as_a_workload(self):
        with mock.patch.dict(self.programs.PROGRAMS):
            self.programs.program(steps=7, wait_every=3)(lambda: lambda number: 10 * number)
            build, steps, wait_every = self.programs.as_workload("<lambda>")
        self.assertEqual((steps, wait_every), (7, 3))
        step = build(1.0)
        self.assertEqual([step(), step(), build(1.0)()], [0, 10, 0])
        with self.assertRaisesRegex(ValueError, "has one size"):
            build(2.0)

    def test_equal_native_runs_want_equal_losses_of_ours(self):
        native = [run([3.0, 2.0]), run([3.0, 2.0])]
        self.assertEqual(self.compare.verdict(native, [run([3.0, 2.0])])[0], "equal")
        self.assertEqual(self.compare.verdict(native, [run([3.0, 2.0]), run([3.0, 2.0 + 1e-9])])[0], "DIFFER")

    def test_noise_is_that_of_as_many_pairs(self):
        native = [run([3.0 + noise]) for noise in (0.0, 0.1, 0.2, 0.3)]
        near = [run([3.0 + noise]) for noise in (0.05, 0.15, 0.25)]
        verdict, noise, away = self.compare.verdict(native, near)
        self.assertEqual(verdict, "noise")
        self.assertTrue(0 < away <= noise)
        self.assertEqual(self.compare.verdict(native, [run([3.5])])[0], "DIFFER")

    def test_a_step_is_compared_with_those_beside_it(self):
        # The machine slows down to a half in the midst, for all alike.
        pace = [1.0] * 10 + [2.0] * 10
        native, other, ours = ([pace_now * time for pace_now in pace] for time in (9.0, 11.0, 8.0))
        ratio, noise, usual = self.compare.side_by_side([ours], [native, other])
        self.assertAlmostEqual(ratio, 0.8)
        self.assertAlmostEqual(noise, 9.0 / 11.0)
        self.assertEqual(usual, 18.0)
        # Each round is compared with its own native runs.
        ratio, _, _ = self.compare.side_by_side([[10.0] * 8, [60.0] * 8], [[10.0] * 8] * 2 + [[60.0] * 8] * 2)
        self.assertEqual(ratio, 1.0)

    def test_the_largest_scale_is_found(self):
        for largest in (1, 15, 16, 17, 100):
            search = self.limits.Search(16)
            while (tried := search.next()) is not None:
                search.hear(tried, {"out_of_memory": None if tried <= largest else "no"})
            self.assertEqual(search.low, largest)
            self.assertEqual(str(search), f"{largest / 16:g}")

    def rank(self, losses, wrong=0, leaked=0, step_ms=10.0):
        pool = {"rejected_frees": 0, "leaked": leaked}
        held = {"peak_live": 1 << 30, "peak_reserved": 1 << 30}
        return {**run(losses, [step_ms] * 8), "wrong": wrong, "step_ms": step_ms, "pool": pool, **held}

    def test_every_rank_has_to_be_right(self):
        native = [[self.rank([3.0, 2.0]), self.rank([5.0, 4.0], step_ms=20.0)]] * 2
        lines, holds = self.ddp.judge(native, [[self.rank([3.0, 2.0]), self.rank([5.0, 4.0], step_ms=21.0)]])
        self.assertTrue(holds, lines)
        self.assertIn("20.00 ms natively, ours 1.0500 of it", "\n".join(lines), "the slowest rank's time is the step's")
        for other in (self.rank([5.0, 4.1]), self.rank([5.0, 4.0], wrong=1), self.rank([5.0, 4.0], leaked=2)):
            self.assertFalse(self.ddp.judge(native, [[self.rank([3.0, 2.0]), other]])[1])

    def test_runs_agree_only_if_enough_steps_do(self):
        one = run([1.0, 2.0, 3.0, 4.0, 5.0])
        self.assertTrue(self.processes.agree(one, run([1.0, 2.0, 3.0, 4.0])))
        self.assertFalse(self.processes.agree(one, run([1.0, 2.0, 3.0])))
        self.assertFalse(self.processes.agree(one, run([1.0, 2.0, 3.0, 4.5])))
        self.assertIn("step 3", self.processes.difference(one, run([1.0, 2.0, 3.0, 4.5])))


if __name__ == "__main__":
    unittest.main()
