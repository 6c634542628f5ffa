# SPDX-License-Identifier: MIT
"""Real clients through real servers: every pair, and no packet around the proxy."""
import os
import subprocess
import unittest

import capture
import lib
import servers
import target
from lib import TARGET4, TARGET6

ASYNCIO = """
import asyncio, sys
async def main(host, port):
    async def one():
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b'GET / HTTP/1.0\\r\\n\\r\\n')
        page = (await reader.read(-1)).split(b'\\r\\n\\r\\n', 1)[1]
        writer.close()
        return page
    pages = await asyncio.gather(*(one() for _ in range(5)))
    assert len(set(pages)) == 1
    sys.stdout.buffer.write(pages[0])
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
BLOCKING = """
import sys, urllib.request
sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], timeout=60).read())
"""
NODE = """
require('http').get(process.argv[1], r => r.pipe(process.stdout));
"""
NODE_REFUSED = """
require('net').connect(+process.argv[2], process.argv[1]).on('error', e => console.log(e.code));
"""


class Clients(lib.NetTest):
    @classmethod
    def prepare(cls):
        cls.world.target()
        cls.serve_git()
        cls.serve_ssh()
        cls.uris = {}
        cls.errors = {}
        for name, start in servers.ALL.items():
            try:
                cls.uris[name] = start(cls.world)
            except (AssertionError, OSError) as error:
                cls.errors[name] = error
        cls.tap = capture.Capture(cls.world.app)
        cls.addClassCleanup(cls.tap.close)

    @classmethod
    def serve_git(cls):
        home = cls.world.dir / "git"
        cls.git_env = lib.environment(HOME=str(cls.world.dir), GIT_CONFIG_NOSYSTEM="1", GIT_TERMINAL_PROMPT="0")
        for command in (["init", "-q", "-b", "main", home / "work"],
                        ["-C", home / "work", "-c", "user.name=t", "-c", "user.email=t@example.test", "commit",
                         "-q", "--allow-empty", "-m", "the only commit"],
                        ["clone", "-q", "--bare", home / "work", home / "repository.git"],
                        ["-C", home / "repository.git", "update-server-info"]):
            subprocess.run(["git", *command], check=True, env=cls.git_env)
        cls.world.start_listening(cls.world.wan, TARGET4, 9418, "git", "daemon", f"--listen={TARGET4}", "--export-all",
                                  f"--base-path={home}", env=cls.git_env)
        cls.world.start_listening(cls.world.wan, TARGET4, 8000, lib.PYTHON, "-m", "http.server", "--bind", "::",
                                  "--directory", home, "8000")

    @classmethod
    def serve_ssh(cls):
        home = cls.world.dir / "ssh"
        home.mkdir(mode=0o700)
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / key], check=True)
        (home / "config").write_text(f"""
Port 2222
HostKey {home}/host
AuthorizedKeysFile {home}/user.pub
PidFile none
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
""")
        cls.world.start_listening(cls.world.wan, TARGET4, 2222, *servers.with_accounts(
            home, ["/usr/sbin/sshd", "-D", "-e", "-f", home / "config"], {}))
        cls.ssh = ["ssh", "-F", "none", "-i", home / "user", "-p", "2222", "-o", "StrictHostKeyChecking=no",
                   "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes"]

    def setUp(self):
        self.tap.leaks()

    def through(self, server, *program, **more):
        if server in self.errors:
            self.fail(str(self.errors[server]))
        result = self.world.proxied(self.uris[server], *program, **more)
        self.assertEqual((result.code, result.err), (0, ""), result.out[-500:])
        self.assertEqual(self.tap.leaks(), [])
        return result.out

    def page(self, server, *program):
        self.assertEqual(self.through(server, *program).encode(), target.PAGE)

    # ---- one method per client; each becomes a test per server ----

    def client_curl(self, server):
        self.page(server, "curl", "-sS", f"http://{TARGET4}:{target.HTTP}/")

    def client_curl_ipv6(self, server):
        self.page(server, "curl", "-sS", f"http://[{TARGET6}]:{target.HTTP}/")

    def client_wget(self, server):
        self.page(server, "wget", "-q", "-O", "-", f"http://{TARGET4}:{target.HTTP}/")

    def client_git_protocol(self, server):
        self.clone(server, f"git://{TARGET4}/repository.git")

    def client_git_http(self, server):
        self.clone(server, f"http://{TARGET4}:8000/repository.git")

    def clone(self, server, url):
        where = self.world.dir / f"clone-{self.id()}"
        self.through(server, "git", "clone", "-q", url, where, env=self.git_env)
        log = subprocess.run(["git", "-C", where, "log", "--format=%s"], env=self.git_env, capture_output=True, text=True)
        self.assertEqual(log.stdout, "the only commit\n")

    def client_ssh(self, server):
        """Both ways through an interactive protocol where the server speaks first."""
        text = os.urandom(100_000).hex()
        out = self.through(server, *self.ssh, f"root@{TARGET4}", "cat; echo $SSH_CONNECTION", input=text)
        self.assertEqual(out[:len(text)], text)
        self.assertNotIn(lib.APP4, out[len(text):])

    def client_python(self, server):
        self.page(server, lib.PYTHON, "-c", BLOCKING, f"http://{TARGET4}:{target.HTTP}/")

    def client_asyncio(self, server):
        self.page(server, lib.PYTHON, "-c", ASYNCIO, TARGET4, target.HTTP)

    def client_node(self, server):
        self.page(server, "node", "-e", NODE, f"http://{TARGET4}:{target.HTTP}/")

    def client_static_busybox(self, server):
        self.page(server, "busybox", "wget", "-q", "-O", "-", f"http://{TARGET4}:{target.HTTP}/")

    def client_is_seen_from_the_proxy(self, server):
        """The target's peer is the proxy, not us."""
        out = self.through(server, lib.PYTHON, lib.CLIENT, "peer", TARGET4)
        self.assertNotIn(lib.APP4, out)
        self.assertRegex(out, r"^10\.")

    def client_refused(self, server):
        out = self.through(server, "node", "-e", NODE_REFUSED, TARGET4, lib.CLOSED_PORT)
        self.assertEqual(out, "ECONNREFUSED\n")


def _with_authentication(name):
    def test(self):
        uri = servers.ALL[name](self.world, auth=True)
        good = self.world.proxied(uri, "curl", "-sS", f"http://{TARGET4}:{target.HTTP}/")
        self.assertEqual((good.code, good.err, good.out.encode() == target.PAGE), (0, "", True))
        scheme, rest = uri.split("://")
        bad = self.connect(f"{scheme}://alice:wrong@{rest.split('@')[1]}", TARGET4, target.HTTP, options=["-v"])
        self.assertEqual(bad.out, "ENETUNREACH")
        self.assertRegex(bad.err, "user (and|or) password")
        none = self.connect(f"{scheme}://{rest.split('@')[1]}", TARGET4, target.HTTP)
        self.assertEqual(none.out, "ENETUNREACH")
    return test


for _server in servers.ALL:
    for _name in [n for n in dir(Clients) if n.startswith("client_")]:
        def _test(self, server=_server, client=_name):
            getattr(self, client)(server)
        setattr(Clients, f"test_{_server}_{_name.removeprefix('client_')}", _test)
    setattr(Clients, f"test_{_server}_with_password", _with_authentication(_server))


if __name__ == "__main__":
    unittest.main(verbosity=2)
