# SPDX-License-Identifier: MIT
"""Real proxies, each started in wan with a configuration of its own. Every function returns the URI to use."""
import crypt
import itertools
import json
from pathlib import Path

import lib

USER, PASSWORD = "alice", "s3cret:/@%"
USERINFO = "alice:s3cret%3A%2F%40%25@"
PLAIN_PASSWORD = "s3cret"  # for servers whose configuration has no quoting
PLAIN_USERINFO = "alice:s3cret@"
_ports = itertools.count(1081)


def _prepare(world, name):
    port = next(_ports)
    home = world.dir / f"{name}-{port}"
    home.mkdir()
    home.chmod(0o777)
    return port, home


def dante(world, auth=False):
    port, home = _prepare(world, "dante")
    (home / "danted.conf").write_text(f"""
logoutput: {home}/log
internal: {lib.PROXY4} port = {port}
external: in
external: lo
external.rotation: route
socksmethod: {"username" if auth else "none"}
clientmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: ::/0 }}
""")
    command = ["/usr/sbin/danted", "-f", home / "danted.conf"]
    if auth:
        command = with_accounts(home, command, {USER: PLAIN_PASSWORD})
    world.start_listening(world.wan, lib.PROXY4, port, *command)
    return f"socks5://{PLAIN_USERINFO if auth else ''}{lib.PROXY4}:{port}"


def with_accounts(home, command, users):
    """`command` in a mount namespace where these system accounts exist besides the machine's own."""
    passwd = Path("/etc/passwd").read_text()
    shadow = "root:*:19000:0:99999:7:::\n"
    for number, (name, password) in enumerate(users.items()):
        passwd += f"{name}:x:{61000 + number}:{61000 + number}::/nonexistent:/usr/sbin/nologin\n"
        shadow += f"{name}:{crypt.crypt(password)}:19000:0:99999:7:::\n"
    (home / "passwd").write_text(passwd)
    (home / "shadow").write_text(shadow)
    words = " ".join(f"'{word}'" for word in command)
    return ["unshare", "-m", "sh", "-c",
            f"mount --bind {home}/passwd /etc/passwd && mount --bind {home}/shadow /etc/shadow &&"
            f" mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec {words}"]


def microsocks(world, auth=False):
    port, _ = _prepare(world, "microsocks")
    words = ["-u", USER, "-P", PASSWORD] if auth else []
    world.start_listening(world.wan, lib.PROXY4, port, "microsocks", "-i", lib.PROXY4, "-p", port, *words)
    return f"socks5://{USERINFO if auth else ''}{lib.PROXY4}:{port}"


def tinyproxy(world, auth=False):
    port, home = _prepare(world, "tinyproxy")
    (home / "tinyproxy.conf").write_text(f"""
User nobody
Port {port}
Listen {lib.PROXY4}
Timeout 600
MaxClients 2000
LogFile "{home}/log"
PidFile "{home}/pid"
{f"BasicAuth {USER} {PLAIN_PASSWORD}" if auth else ""}
""")
    world.start_listening(world.wan, lib.PROXY4, port, "tinyproxy", "-d", "-c", home / "tinyproxy.conf")
    return f"http://{PLAIN_USERINFO if auth else ''}{lib.PROXY4}:{port}"


def squid(world, auth=False):
    port, home = _prepare(world, "squid")
    (home / "users").write_text(f"{USER}:{crypt.crypt(PASSWORD, crypt.METHOD_MD5)}\n")
    (home / "squid.conf").write_text(f"""
http_port {lib.PROXY4}:{port}
pid_filename none
cache_log {home}/cache.log
cache_store_log none
access_log none
cache deny all
cache_mem 8 MB
coredump_dir {home}
pinger_enable off
dns_nameservers 127.0.0.1
visible_hostname squid.test
shutdown_lifetime 0 seconds
""" + (f"""
auth_param basic program /usr/lib/squid/basic_ncsa_auth {home}/users
acl known proxy_auth REQUIRED
http_access allow known
""" if auth else "http_access allow all\n"))
    world.start_listening(world.wan, lib.PROXY4, port, "squid", "-N", "-n", f"t{port}", "-f", home / "squid.conf")
    return f"http://{USERINFO if auth else ''}{lib.PROXY4}:{port}"


def mprox_serve(world, scheme="socks5", auth=False, address=lib.PROXY4, ns=None, options=()):
    """`mprox serve` speaks every protocol on one port. In wan unless told otherwise."""
    listen = f"[{address}]:0" if ":" in address else f"{address}:0"
    words = ["--user", f"{USER}:{PASSWORD}"] if auth else []
    process = world.start(ns or world.wan, lib.MPROX, "serve", "--listen", listen, *words, *options,
                          stdin=lib.subprocess.DEVNULL, stdout=lib.subprocess.PIPE, text=True)
    line = process.stdout.readline()
    if not line.startswith("listening on "):
        raise AssertionError(f"mprox serve said {json.dumps(line)}")
    where = line.split()[2]
    return f"{scheme}://{USERINFO if auth else ''}{where}"


ALL = {"dante": dante, "microsocks": microsocks, "tinyproxy": tinyproxy, "squid": squid, "mprox_serve": mprox_serve}
