# SPDX-License-Identifier: MIT
"""mprox doctor: one line for each thing that is needed, what to do about each no, and a status to ask in scripts."""
import shutil
import unittest

import lib


class Doctor(lib.NetTest):
    def doctor(self, *prefix):
        return lib.run(self.world.app.command(*prefix, lib.MPROX, "doctor"))

    def test_all_well(self):
        """Here everything is allowed: the other tests need it."""
        result = self.doctor()
        self.assertEqual((result.code, result.err), (0, ""))
        *lines, verdict = result.out.splitlines()
        self.assertGreaterEqual(len(lines), 8)
        for line in lines:
            self.assertTrue(line.startswith("yes "), line)
        self.assertEqual(verdict, "mprox run works here.")

    def test_inside_ip_netns_exec(self):
        result = lib.run(["ip", "netns", "exec", self.world.app.name, lib.MPROX, "doctor"])
        self.assertEqual((result.code, result.err), (0, ""))

    def test_without_privileges(self):
        """Each no says what to do."""
        program = self.world.dir / "mprox"
        shutil.copy(lib.MPROX, program)
        program.chmod(0o755)
        result = lib.run(self.world.app.command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                                                program, "doctor"))
        self.assertEqual(result.code, 1)
        denied = [line for line in result.out.splitlines() if line.startswith("no ")]
        self.assertTrue(denied)
        for line in denied:
            self.assertRegex(line, "(?i)root|sudo|CAP_", "no word of what to do")

    def test_leaves_nothing(self):
        self.doctor()
        self.assertClean()


if __name__ == "__main__":
    unittest.main(verbosity=2)
