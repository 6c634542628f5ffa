# SPDX-License-Identifier: MIT
"""The exact words of the command line, from golden.txt: a command after `$`, what it prints, `=>` its exit status.

MPROX_GOLDEN_WRITE=1 writes what is printed now into the file, for review.
"""
import os
import shlex
import unittest
from pathlib import Path

import lib

GOLDEN = Path(__file__).with_name("golden.txt")
HEAD = "# Written by test_golden.py; commands run without any proxy in the environment.\n"


class Golden(lib.NetTest):
    maxDiff = None

    def show(self, command):
        program, *words = shlex.split(command)
        self.assertEqual(program, "mprox")
        result = self.world.mprox(*words)
        return f"$ {command}\n{result.out}{result.err}=> {result.code}\n"

    def test_golden(self):
        text = GOLDEN.read_text()
        commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        self.assertTrue(commands)
        shown = HEAD + "".join("\n" + self.show(command) for command in commands)
        if os.environ.get("MPROX_GOLDEN_WRITE"):
            GOLDEN.write_text(shown)
        self.assertEqual(shown, text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
