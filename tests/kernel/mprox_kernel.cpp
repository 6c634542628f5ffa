// SPDX-License-Identifier: MIT
// mprox_kernel run [--proxy URI]... [--bypass CIDR]... [--timeout SECONDS] [--block-udp] [--user NAME] [-v] [--stats]
//              [--data-path ANY] [--no-warm] -- PROGRAM ARGS...
// Does what `mprox run` does, but with the kernel's proxy descriptor, so that suites written for `mprox run` can be run
// on the kernel: MPROX_BIN=.../mprox_kernel tests/run NAME. Every other subcommand is passed on to mprox beside it.
//
// The program is a member and does not hold the descriptor; a process of its own does, until there are no members left.
#include <fcntl.h>
#include <grp.h>
#include <mprox/mprox.h>
#include <pwd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace {

struct Options {
    std::string config = "bypass 127.0.0.0/8\nbypass 169.254.0.0/16\nbypass ::1/128\nbypass fe80::/10\n";
    std::string user;
    bool verbose = false, stats = false;
    char** program = nullptr;
};

[[noreturn]] void die(const char* what) {
    std::fprintf(stderr, "mprox_kernel: %s: %s\n", what, std::strerror(errno));
    std::_Exit(125);
}

Options parse(char** word) {
    Options out;
    for (; *word; word++) {
        const std::string_view name = *word;
        const auto value = [&] { return std::string(*++word ? *word : (errno = EINVAL, die("an option needs a value"), "")); };
        if (name == "--") {
            out.program = word + 1;
            return out;
        }
        if (name == "--proxy" || name == "-x") out.config += "server " + value() + "\n";
        else if (name == "--bypass") out.config += "bypass " + value() + "\n";
        else if (name == "--timeout") out.config += "timeout " + value() + "\n";
        else if (name == "--directive") out.config += value() + "\n";
        else if (name == "--block-udp") out.config += "udp block\n";
        else if (name == "--user") out.user = value();
        else if (name == "--data-path") value();  // the kernel has one, which is out of the path
        else if (name == "--no-warm") continue;  // it never makes connections ahead
        else if (name == "-v") out.verbose = true;
        else if (name == "--stats") out.stats = true;
        else {
            errno = EINVAL;
            die(*word);
        }
    }
    errno = EINVAL;
    die("no program given");
}

std::string snapshot(int fd) {
    std::string text(MUTEX_PROXY_SNAPSHOT_MAX, '\0');
    const ssize_t n = mprox_snapshot(fd, text.data(), text.size());
    if (n < 0) die("read");
    text.resize(static_cast<std::size_t>(n));
    return text;
}

std::string field(const std::string& text, std::string_view key) {
    const auto at = ("\n" + text).find("\n" + std::string(key) + ": ");
    if (at == std::string::npos) return {};
    const auto start = at + key.size() + 2;
    return text.substr(start, text.find('\n', start) - start);
}

[[noreturn]] void hold(int fd, int started, const Options& options) {
    char none;
    setsid();
    if (read(started, &none, 1) < 0) die("read");  // until the program has begun
    if (!options.verbose && !options.stats) {
        const int null = open("/dev/null", O_RDWR);
        for (const int end : {0, 1, 2}) dup2(null, end);
    }
    std::string now, told = "none";
    for (;;) {
        now = snapshot(fd);
        if (const auto error = field(now, "error"); options.verbose && error != told && error != "none")
            std::fprintf(stderr, "mprox_kernel: %s\n", (told = error).c_str());
        if (field(now, "members") == "0") break;
    }
    for (std::size_t at = 0; options.verbose && (at = now.find("\nserver: ", at)) != std::string::npos;) {
        at++;
        const auto line = now.substr(at, now.find('\n', at) - at);
        if (!line.ends_with("failed=0")) std::fprintf(stderr, "mprox_kernel: %s\n", line.c_str());
    }
    if (options.stats) {
        mutex_proxy_stats stats{};
        stats.size = sizeof stats;
        if (mprox_get_stats(fd, &stats)) die("stats");
        std::fprintf(stderr, "mprox_kernel: %s\n%llu connection%s, %llu bytes sent, %llu received, %llu refused\n",
                     field(now, "error").c_str(), stats.connected, stats.connected == 1 ? "" : "s", stats.bytes_sent,
                     stats.bytes_received, stats.refused + stats.failed);
    }
    std::_Exit(0);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || std::string_view(argv[1]) != "run") {
        const auto mprox = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "mprox";
        execv(mprox.c_str(), argv);
        die("mprox");
    }
    const Options options = parse(argv + 2);
    const int fd = mprox_create(MUTEX_PROXY_CLOEXEC);
    if (fd < 0) die("mprox_create");
    if (mprox_set_config(fd, options.config.data(), options.config.size())) {
        std::fprintf(stderr, "%s", snapshot(fd).c_str());
        die("configuration");
    }
    int started[2];
    if (pipe2(started, O_CLOEXEC)) die("pipe");
    const pid_t between = fork();
    if (between == 0) {
        if (fork()) std::_Exit(0);
        close(started[1]);
        hold(fd, started[0], options);
    }
    waitpid(between, nullptr, 0);
    if (mprox_enable(fd)) die("enable");
    if (!options.user.empty()) {
        const passwd* entry = getpwnam(options.user.c_str());
        if (!entry || initgroups(entry->pw_name, entry->pw_gid) || setgid(entry->pw_gid) || setuid(entry->pw_uid))
            die("user");
    }
    execvp(options.program[0], options.program);
    const int error = errno;
    std::fprintf(stderr, "mprox_kernel: %s: %s\n", options.program[0], std::strerror(error));
    return error == ENOENT ? 127 : 126;
}
