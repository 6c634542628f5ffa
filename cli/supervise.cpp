// SPDX-License-Identifier: MIT
#include "cli/supervise.hpp"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>

#include "cli/read_line.hpp"

namespace mprox {
namespace {

// Prints what the engine says, once. Nothing when it was killed.
void print_account(const Fd& stats) {
    std::string line = read_line(stats);
    if (line.empty()) return;
    line = "mprox: " + line;
    if (::write(STDERR_FILENO, line.data(), line.size()) < 0) return;
}

}  // namespace

int supervise(pid_t program, Fd stats, Arguments arguments) {
    ::prctl(PR_SET_DUMPABLE, 0);  // no core with passwords in it
    close_inherited();            // a pipe must end when the program closes it
    // A proxy's password may stand on our command line, where ps shows it.
    for (int i = 1; i < arguments.count; i++) std::memset(arguments.values[i], 0, std::strlen(arguments.values[i]));

    sigset_t signals;
    ::sigfillset(&signals);
    // These are about ourselves.
    for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTTOU, SIGTTIN}) ::sigdelset(&signals, own);
    ::sigprocmask(SIG_BLOCK, &signals, nullptr);
    for (;;) {
        int status = 0;
        const pid_t changed = ::waitpid(program, &status, WNOHANG | WUNTRACED);
        if (changed == program && WIFSTOPPED(status)) {
            // The shell that started us must see a stopped job; SIGCONT reaches the whole group.
            ::raise(SIGSTOP);
            continue;
        }
        if (changed == program || (changed < 0 && errno == ECHILD)) {
            print_account(stats);
            return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        }
        siginfo_t info{};
        const int signal = ::sigwaitinfo(&signals, &info);
        if (signal < 0 || signal == SIGCHLD) continue;
        // What the terminal sends it sends to the program as well.
        if (info.si_code != SI_KERNEL) ::kill(program, signal);
    }
}

}  // namespace mprox
