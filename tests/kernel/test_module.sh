#!/bin/sh
# Loads the module, uses the descriptor and unloads the module again; see --help.
set -u

usage() {
    cat <<'EOF'
usage: test_module.sh [--module FILE] [--test-syscall PROGRAM]
Five stages: the module loads, the call is available, descriptors are made, configuration operations, the module unloads
and leaves nothing behind. As root, on a kernel built with CONFIG_MUTEX_PROXY=y, with the module not loaded.

  --module FILE           load this mutex_proxy.ko (default: what modprobe finds)
  --test-syscall PROGRAM  (default: test_syscall beside this script, else in PATH)

A line for each check. Exit status: 0 when all is well, 1 when a check failed, 2 when it was called wrongly.
EOF
}

here=$(cd "$(dirname "$0")" && pwd)
show=/sys/kernel/mutex_proxy
module=
program=$here/test_syscall
[ -x "$program" ] || program=test_syscall

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --module | --test-syscall)
            [ $# -ge 2 ] || { echo "test_module.sh: $1 needs a value; see --help" >&2; exit 2; }
            if [ "$1" = --module ]; then module=$2; else program=$2; fi
            shift 2 ;;
        *) echo "test_module.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
    esac
done
[ "$(id -u)" -eq 0 ] || { echo "test_module.sh: modules are loaded by root only; run it as root" >&2; exit 2; }
command -v "$program" >/dev/null || { echo "test_module.sh: there is no program '$program'" >&2; exit 2; }
[ -z "$module" ] || [ -r "$module" ] || { echo "test_module.sh: cannot read '$module'" >&2; exit 2; }

failed=0
loaded=no
output=$(mktemp)

finish() {
    rm -f "$output"
    # However it ends, it leaves no module that was not there.
    [ "$loaded" = no ] || rmmod mutex_proxy
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

stage() { echo "Stage $1: $2"; }

# check WHAT COMMAND...: one line; the command's output too when it fails.
check() {
    what=$1
    shift
    if "$@" >"$output" 2>&1; then
        echo "  ok    $what"
    else
        echo "  FAIL  $what"
        sed 's/^/        /' "$output"
        failed=$((failed + 1))
        return 1
    fi
}

no() { ! "$@"; }
is_loaded() { grep -q '^mutex_proxy ' /proc/modules; }
load() { if [ -n "$module" ]; then insmod "$module"; else modprobe mutex_proxy; fi; }
# The kernel's log since the mark that this run put there.
mark="test_module.sh $$ begins"
log() { dmesg | sed "1,/$mark/d"; }
logged() { log | grep -F "mutex_proxy: $1" || { log | tail -n 20; return 1; }; }
# The lines of the load; that of the tests only where they were built.
in_order() {
    [ "$(log | sed -n 's/.*] mutex_proxy: //p' | grep -E ' initialized$|^registered |^module loaded ' |
        grep -v '^testing framework ')" = "connection tracking initialized
packet rewriting initialized
security hardening initialized
performance optimization initialized
registered 3 netfilter hooks
module loaded successfully" ] || { log; return 1; }
}
shows() { cat "$show/$1" && [ "$(cat "$show/$1")" = "$2" ]; }
# made FLAGS: the program's whole output is as documented.
made() {
    "$program" "$1" || return 1
    [ "$("$program" "$1")" = "MUTEX_PROXY mprox_create Syscall Test Program
============================

Created fd 3
  Syscall Number: $(cat "$show/syscall_number") (mprox_create)
  Flags:          $2" ]
}
refused() { "$program" "$1" && return 1; "$program" "$1" 2>&1 | grep -F "$2"; }
with_descriptor() { "$program" 0x2 sh -c "$1"; }

stage 1 "the module loads"
if is_loaded; then
    echo "  FAIL  it is loaded already: rmmod mutex_proxy first"
    exit 1
fi
contexts=$(cat "$show/contexts" 2>/dev/null || echo 0)
echo "$mark" >/dev/kmsg
check "it loads" load || exit 1
loaded=yes
check "it is listed in /proc/modules" is_loaded
check "it registers its hooks" logged "registered 3 netfilter hooks"
check "it says so when it is ready" logged "module loaded successfully"
check "it says what it has got ready, in its order" in_order

stage 2 "the call is available"
check "the kernel shows its number" grep -E '^[1-9][0-9]*$' "$show/syscall_number"
check "the kernel shows the ABI's version" grep -E '^[1-9][0-9]*$' "$show/abi_version"

stage 3 "descriptors are made"
check "without flags" made 0 0x0
check "with CLOEXEC" made 0x1 0x1
check "with CLOEXEC and NONBLOCK" made 0x3 0x3
check "an unknown flag is refused" refused 0x8 EINVAL
check "it is logged" logged "Created fd 3 for process "

stage 4 "configuration operations"
check "a configuration is taken and shown" with_descriptor '
    printf "server socks5://me:pa55w0rd@127.0.0.1:1080 weight=2\non-close refuse\n" >&3 || exit 1
    text=$(dd bs=32768 count=1 <&3 2>/dev/null) || exit 1
    echo "$text"
    echo "$text" | grep -q "^server: 0 socks5://127.0.0.1:1080 weight=2 " || exit 1
    echo "$text" | grep -q "^error: none$"'
check "a password does not come back" with_descriptor '
    printf "server socks5://me:pa55w0rd@127.0.0.1:1080\n" >&3 || exit 1
    { dd bs=32768 count=1 <&3 2>/dev/null && cat /proc/self/fdinfo/3; } | grep pa55w0rd && exit 1
    exit 0'
check "a bad line changes nothing and is explained" with_descriptor '
    echo "server socks5://127.0.0.1:1080" >&3 || exit 1
    printf "timeout 9\nserver gopher://127.0.0.1\n" >&3 && exit 1
    text=$(dd bs=32768 count=1 <&3 2>/dev/null) || exit 1
    echo "$text"
    echo "$text" | grep -q "^server: 0 socks5://127.0.0.1:1080 " && echo "$text" | grep -q "^error: line 2, column 8: "'
check "nothing new is EAGAIN" with_descriptor '
    dd bs=32768 count=1 <&3 >/dev/null 2>&1 || exit 1
    dd bs=32768 count=1 <&3 && exit 1
    exit 0'

stage 5 "the module unloads and leaves nothing behind"
check "it unloads" rmmod mutex_proxy && loaded=no
check "it is gone from /proc/modules" no is_loaded
check "it says so" logged "module unloaded"
check "as many contexts as before" shows contexts "$contexts"
check "the call stays" made 0 0x0
check "the kernel has not complained" no sh -c "dmesg | sed '1,/$mark/d' | grep -E 'WARNING|BUG|Oops|refcount_t|possible recursive locking|circular locking'"

if [ "$failed" -eq 0 ]; then
    echo "All stages passed."
else
    echo "Checks failed: $failed"
    exit 1
fi
