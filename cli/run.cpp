// SPDX-License-Identifier: MIT
#include "cli/run.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "cli/options.hpp"
#include "cli/read_line.hpp"
#include "cli/supervise.hpp"
#include "engine/session.hpp"

namespace mprox {
namespace {

// The kernel itself ends an unanswered connect() after 127 seconds (net.ipv4.tcp_syn_retries).
constexpr int most_seconds = 120;

[[nodiscard]] int complain(const std::string& sentence, int status = run_failed) {
    const std::string line = "mprox run: " + sentence + "\n";
    if (::write(STDERR_FILENO, line.data(), line.size()) < 0) return status;
    return status;
}

std::pair<Fd, Fd> make_pipe() {
    int ends[2] = {-1, -1};
    if (::pipe2(ends, O_CLOEXEC) != 0) return {};
    return {Fd(ends[0]), Fd(ends[1])};
}

// ps shows the command line of a living process to everybody, and the engine lives long.
void retitle(Arguments arguments, const std::string& title) {
    char* begin = arguments.values[0];
    char* end = arguments.values[arguments.count - 1] + std::strlen(arguments.values[arguments.count - 1]);
    std::memset(begin, 0, static_cast<std::size_t>(end - begin));
    std::strncpy(begin, title.c_str(), static_cast<std::size_t>(end - begin));
    ::prctl(PR_SET_NAME, "mprox-engine");
}

struct Engine {
    Programs programs;
    mprox_call context;
};

// Starts the engine as a daemon that is nobody's child: the program must not find one it did not make.
// Returns when connects can be caught.
std::expected<Engine, std::string> start_engine(const SessionSettings& settings, const std::string& program, Fd stats,
                                                Arguments arguments) {
    auto dir = RunDir::lock();
    if (!dir) return std::unexpected(dir.error());
    auto programs = Programs::open(*dir);
    if (!programs) return std::unexpected(programs.error());
    auto context = programs->create(*dir, settings.context);
    if (!context) {
        programs->sweep(*dir);
        return std::unexpected(context.error());
    }
    const std::string engines = dir->engines();
    Fd self(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
    auto [ready_read, ready_write] = make_pipe();
    if (!self || !ready_read) return std::unexpected(std::string("cannot make a pipe: ") + std::strerror(errno));

    const std::string title = fmt::format("mprox: engine of {} ({})", ::getpid(), program);
    const pid_t middle = ::fork();
    if (middle < 0) return std::unexpected(std::string("cannot fork: ") + std::strerror(errno));
    if (middle == 0) {
        ::setsid();
        if (::fork() != 0) ::_exit(0);
        {
            // The lock stays with the starter; this copy of its descriptor must not keep it.
            const auto gone = std::move(*dir);
        }
        ready_read.reset();
        retitle(arguments, title);
        ::_exit(run_session(std::move(*programs), *context, engines, settings, std::move(self), std::move(ready_write),
                            std::move(stats)));
    }
    ready_write.reset();
    while (::waitpid(middle, nullptr, 0) < 0 && errno == EINTR) continue;

    const std::string answer = read_line(ready_read);
    if (answer == "\n") return Engine{std::move(*programs), *context};
    programs->sweep(*dir);
    return std::unexpected(answer.empty() ? "the engine died while starting"
                                           : "the engine cannot start: " + answer.substr(0, answer.size() - 1));
}

int run(const RunOptions& options, Arguments own_arguments) {
    if (options.program.empty()) return complain("no program given: mprox run [OPTIONS] -- PROGRAM [ARGS...]");
    auto servers = read_proxies(options.proxies);
    if (!servers) return complain(servers.error());
    auto bypass = read_bypass(options.bypass, !options.no_default_bypass);
    if (!bypass) return complain(bypass.error());
    std::expected<Identity, std::string> identity{};
    if (options.as_user && !(identity = read_user(options.user))) return complain(identity.error());
    if (::geteuid() != 0) return complain("needs root to load BPF programs: use sudo, and --user to run the program as yourself");

    const SessionSettings settings{
        .servers = std::move(*servers),
        .context = {.bypass = std::move(*bypass),
                    .timeout_ms = static_cast<std::uint32_t>(options.timeout * 1000),
                    .shards = choose_shards(),
                    .block_udp = options.block_udp},
        .verbose = options.verbose,
        .splice = options.data_path == "relay"    ? Splice::never
                  : options.data_path == "splice" ? Splice::always
                                                  : Splice::possible,
        .warm = !options.no_warm,
    };

    // We wait for children of our own; the program gets back what our starter wanted.
    struct sigaction children {}, own {};
    own.sa_handler = SIG_DFL;
    ::sigaction(SIGCHLD, &own, &children);

    Fd stats_write;
    if (options.stats) {
        auto [read_end, write_end] = make_pipe();
        if (!read_end) return complain(std::string("cannot make a pipe: ") + std::strerror(errno));
        const pid_t child = ::fork();
        if (child < 0) return complain(std::string("cannot fork: ") + std::strerror(errno));
        if (child > 0) {
            write_end.reset();
            return supervise(child, std::move(read_end), own_arguments);
        }
        read_end.reset();
        stats_write = std::move(write_end);
    }

    std::vector<char*> arguments;
    for (const auto& word : options.program) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);

    auto engine = start_engine(settings, options.program[0], std::move(stats_write), own_arguments);
    if (!engine) return complain(engine.error());
    if (!engine->programs.join(engine->context)) return complain("cannot enter this process as a member");
    if (options.as_user)
        if (auto became = become(*identity); !became) return complain(became.error());
    ::sigaction(SIGCHLD, &children, nullptr);
    ::execvp(arguments[0], arguments.data());
    const int error = errno;
    return complain(fmt::format("cannot run '{}': {}", options.program[0], std::strerror(error)),
                    error == ENOENT ? run_not_found : run_not_executable);
}

}  // namespace

void add_run_command(CLI::App& app, Arguments arguments, bool marked, const std::vector<std::string>& after_mark,
                     int& exit_code) {
    const auto options = std::make_shared<RunOptions>();
    CLI::App* run_command = app.add_subcommand("run", "Run a program with all its TCP connections going through a proxy");
    run_command->add_option("-x,--proxy", options->proxies,
                            "socks5|socks5h|socks4|socks4a|http://[USER:PASSWORD@]HOST[:PORT]; repeat for failover. "
                            "Default: $MPROX_PROXY, $ALL_PROXY, $all_proxy")
        ->take_all()->allow_extra_args(false)->type_name("URI");
    run_command->add_option("--bypass", options->bypass, "Connect directly to these; repeatable")
        ->take_all()->allow_extra_args(false)->type_name("CIDR[:PORT]");
    run_command->add_flag("--no-default-bypass", options->no_default_bypass,
                          "Send loopback and link-local destinations through the proxy, too");
    run_command->add_option("--timeout", options->timeout, "Give up a connect() after so many seconds [60]")->type_name("SECONDS")
        ->check([](const std::string& text) {
            double seconds = 0;
            const bool good = CLI::detail::lexical_cast(text, seconds) && seconds >= 1 && seconds <= most_seconds;
            return good ? std::string() : fmt::format("give 1 to {} seconds", most_seconds);
        });
    run_command->add_option("--data-path", options->data_path,
                            "How bytes move: relay, through the engine; splice, past it, with a warning where that cannot be; "
                            "auto, past it where that can be [auto]")
        ->type_name("auto|relay|splice")
        ->check([](const std::string& text) {
            const bool good = text == "auto" || text == "relay" || text == "splice";
            return good ? std::string() : "give auto, relay or splice";
        });
    run_command->add_flag("--no-warm", options->no_warm, "Connect to the proxy only when a connection is needed, never ahead");
    run_command->add_flag("--block-udp", options->block_udp, "Refuse UDP, ping and raw sockets instead of leaving them direct");
    CLI::Option* user = run_command->add_option("--user", "Run the program as this user; alone: as the user who called sudo")
                            ->expected(0, 1)->type_name("[NAME]");
    run_command->add_flag("-v,--verbose", options->verbose, "Log every connection on stderr");
    run_command->add_flag("--stats", options->stats, "Print one line on stderr at the end: connections, bytes, refused");
    run_command->prefix_command();
    run_command->callback([=, &exit_code] {
        options->as_user = user->count() > 0;
        // What CLI11 stores for an option without its optional value.
        if (options->as_user && user->results()[0] != "true") options->user = user->results()[0];
        options->program = run_command->remaining();
        if (!options->program.empty() && options->program[0].starts_with('-')) {
            exit_code = complain(fmt::format("there is no option '{}'; see mprox run --help", options->program[0]));
            return;
        }
        // `mprox run git log -- file`: the mark is the program's own when the program came first.
        if (marked && !options->program.empty()) options->program.emplace_back("--");
        options->program.insert(options->program.end(), after_mark.begin(), after_mark.end());
        exit_code = run(*options, arguments);
    });
}

}  // namespace mprox
