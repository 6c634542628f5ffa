// SPDX-License-Identifier: MIT
#include "engine/session.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <system_error>
#include <thread>

#include "engine/shard.hpp"

namespace mprox {
namespace {

using namespace std::chrono_literals;

// A relayed flow holds two sockets, a spliced one one. Pipes come on top while bytes move; a flow that gets none does without.
constexpr std::size_t descriptors_per_flow = 2;
constexpr std::size_t descriptors_besides = 320;
// Flows an engine should be able to hold. Each thread has a descriptor table of its own, so where the limit is low
// more threads hold more.
constexpr std::size_t flows_wanted = 32'768;
// What the members left unfinished may go on as long as it makes progress at least this often: the kernel keeps an
// orphaned connection half open for as long (net.ipv4.tcp_fin_timeout).
constexpr auto linger_limit = 60s;
// How long the line of account waits for connections that the program left unfinished.
constexpr auto account_limit = 1s;

std::size_t raise_descriptor_limit() {
    std::uint64_t most = 0;
    std::ifstream("/proc/sys/fs/nr_open") >> most;
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    // A lowered hard limit is somebody's decision; a merely soft one is not meant for us.
    limit.rlim_cur = limit.rlim_max;
    if (most && limit.rlim_max >= 4096 && limit.rlim_max < most) {
        const rlimit wanted{.rlim_cur = most, .rlim_max = most};
        if (::setrlimit(RLIMIT_NOFILE, &wanted) == 0) return most;
    }
    ::setrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
}

// Threads that are worth having at once: the proxied programs need processors as well, and a thread that many connections
// share is woken less often for each.
std::uint32_t useful_shards() { return std::clamp((std::thread::hardware_concurrency() + 1) / 2, 1u, MPROX_SHARDS + 0u); }

std::size_t flows_per_thread(std::size_t descriptors) {
    return descriptors > descriptors_besides ? (descriptors - descriptors_besides) / descriptors_per_flow : 0;
}

void set_log(bool verbose) {
    auto logger = spdlog::stderr_logger_mt("mprox");
    logger->set_pattern("mprox: %v");
    logger->set_level(verbose ? spdlog::level::info : spdlog::level::warn);
    logger->flush_on(spdlog::level::trace);
    spdlog::set_default_logger(std::move(logger));
}

void point_at_null(int fd) {
    const Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    ::dup2(null.get(), fd);
}

// The addresses that getsockname() shows unless a flow knows better: those of the default routes, and where there is
// none, of the way to a server.
void tell_usual_addresses(volatile mprox_context& context, const std::vector<Server>& servers) {
    const Namespaces namespaces;
    const auto source = [&](const Address& anywhere) {
        Address from = namespaces.own()->source_towards(anywhere);
        for (const Server& server : servers)
            if (from.is_unset() && server.address.family() == anywhere.family() && !server.address.is_loopback())
                from = namespaces.own()->source_towards(server.address);
        return from.ip;
    };
    Address anywhere4{.ip = {}, .port = 9}, anywhere6{.ip = {}, .port = 9};
    anywhere4.ip.word[2] = htonl(0xffff);
    anywhere4.ip.word[3] = htonl(0xcb007101);  // 203.0.113.1 and 2001:db8::1 are nobody's (RFC 5737, RFC 3849)
    anywhere6.ip.word[0] = htonl(0x20010db8);
    anywhere6.ip.word[3] = htonl(1);
    const auto put = [](volatile mprox_ip& to, const mprox_ip& from) {
        to.half[0] = from.half[0];
        to.half[1] = from.half[1];
    };
    put(context.local4, source(anywhere4));
    put(context.local6, source(anywhere6));
    context.netns = namespaces.own()->cookie();
}

class Session {
  public:
    Session(Programs programs, const mprox_call& context, const SessionSettings& settings, Fd program, Fd stats)
        : shared_{.programs = std::move(programs),
                  .context = context,
                  .policy = Policy(settings.servers),
                  .account = {},
                  .timeout = std::chrono::milliseconds(settings.context.timeout_ms),
                  .splice = settings.splice,
                  .warm = settings.warm,
                  .descriptors = 0,
                  .changed = [this] { poller_.post([this] { check(); }); }},
          verbose_(settings.verbose),
          program_(poller_, std::move(program)),
          stats_(std::move(stats)),
          account_limit_(poller_),
          linger_(poller_) {
        if (!program_) throw std::system_error(errno, std::generic_category(), "cannot watch the program");
        const std::size_t flows = flows_per_thread(raise_descriptor_limit());
        shared_.descriptors = flows * descriptors_per_flow;
        // Two that look at the same moment may both find the last place free: some are kept back.
        this->context().room = static_cast<__u32>(flows - flows / 64);
        this->context().spread = useful_shards();
        const std::uint32_t shards = settings.context.shards;
        for (std::uint32_t i = 0; i < shards; i++) shards_.push_back(std::make_unique<Shard>(shared_, i));
    }

    [[nodiscard]] bool begin(const std::string& engines_directory) {
        tell_usual_addresses(context(), shared_.policy.servers());
        file_ = engines_directory + "/" + std::to_string(::getpid());
        std::ofstream(file_) << "slot " << shared_.context.slot << "\n";
        return shared_.programs.serve(shared_.context);
    }

    void run() {
        std::vector<std::jthread> threads;
        for (auto& shard : shards_)
            threads.emplace_back([&shard] {
                own_descriptor_table();  // the shard's event loop was made before: stop() and post() reach it
                shard->run();
            });
        program_.share();  // with the shards' tables
        program_.listen([this](std::uint32_t events) {
            if (events & Descriptor::reading) program_ended();
        });
        poller_.run();
        for (auto& shard : shards_) shard->stop();
    }

    void end() {
        // Members that are still there (we were told to stop) stay refused; the last of us will clean up.
        auto dir = RunDir::lock();
        if (!dir) return;
        if (context().members == 0) shared_.programs.destroy(*dir, shared_.context.slot);
        ::unlink(file_.c_str());
        shared_.programs.sweep(*dir);
    }

  private:
    volatile mprox_context& context() { return shared_.programs.context(shared_.context.slot); }

    [[nodiscard]] std::size_t active() const {
        std::size_t sum = 0;
        for (const auto& shard : shards_) sum += shard->active();
        return sum;
    }

    void program_ended() {
        program_.close();
        program_gone_ = true;
        // What the program left behind must not keep a pipe or an ssh session open through us.
        if (!verbose_) {
            point_at_null(STDERR_FILENO);
            for (auto& shard : shards_) shard->post([] { point_at_null(STDERR_FILENO); });
        }
        if (stats_) {
            account_limit_.start(account_limit, [this] { tell_account(); });
            for (auto& shard : shards_) shard->measure_unsent();
        }
        check();
    }

    void tell_account() {
        if (!stats_) return;
        const std::uint64_t members = context().members;
        std::string line = shared_.account.line(context().denied);
        if (members > 0)
            line += fmt::format("; {} process{} left behind keep{} the proxy", members, members == 1 ? "" : "es",
                                members == 1 ? "s" : "");
        line += '\n';
        // A reader that is gone does not matter: SIGPIPE is ignored.
        if (::write(stats_.get(), line.data(), line.size()) < 0) spdlog::debug("nobody reads the account");
        stats_.reset();
    }

    void check() {
        if (!program_gone_) return;
        const bool at_rest = active() == 0;
        if (at_rest) tell_account();
        if (context().members > 0) return;
        if (at_rest) return poller_.stop();
        if (lingering_) return;
        lingering_ = true;
        linger();
    }

    // The last members are gone; their connections still deliver what was written.
    void linger() {
        const std::uint64_t before = progress();
        for (auto& shard : shards_) shard->measure_unsent();
        linger_.start(linger_limit, [this, before] {
            if (progress() == before) return poller_.stop();
            linger();
        });
    }

    // A number that changes when bytes move: passed on, or sent by the kernel.
    [[nodiscard]] std::uint64_t progress() const {
        std::uint64_t sum = 2 * (shared_.account.up + shared_.account.down);
        for (const auto& shard : shards_) sum -= shard->unsent();
        return sum;
    }

    Poller poller_;
    Shared shared_;
    const bool verbose_;
    Descriptor program_;
    Fd stats_;
    Timer account_limit_, linger_;
    std::vector<std::unique_ptr<Shard>> shards_;
    std::string file_;
    bool program_gone_ = false;
    bool lingering_ = false;
};

}  // namespace

std::uint32_t choose_shards() {
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    const std::size_t each = std::max<std::size_t>(flows_per_thread(limit.rlim_max), 1);
    const std::size_t enough = (flows_wanted + each - 1) / each;
    return static_cast<std::uint32_t>(std::clamp<std::size_t>(enough, useful_shards(), MPROX_SHARDS));
}

int run_session(Programs programs, const mprox_call& context, const std::string& engines_directory,
                const SessionSettings& settings, Fd program, Fd ready, Fd stats) {
    ::signal(SIGPIPE, SIG_IGN);
    ::prctl(PR_SET_DUMPABLE, 0);  // no core with passwords in it
    close_inherited();
    if (::chdir("/") != 0) return 1;
    point_at_null(STDIN_FILENO);
    point_at_null(STDOUT_FILENO);
    set_log(settings.verbose);
    const auto fail = [&](std::string why) {
        why += '\n';
        return ::write(ready.get(), why.data(), why.size()) < 0 ? 2 : 1;
    };
    try {
        // Never destroyed: a shard's descriptors are numbers in its thread's table, and mean something else in ours.
        // They were closed with the thread.
        auto& session = *new Session(std::move(programs), context, settings, std::move(program), std::move(stats));
        if (!session.begin(engines_directory)) return fail("cannot register the engine with the BPF programs");
        spdlog::info("engine {} is ready", ::getpid());
        if (::write(ready.get(), "\n", 1) != 1) return 1;
        ready.reset();
        session.run();
        session.end();
    } catch (const std::exception& error) {
        // libstdc++ and Asio report exhausted resources this way.
        return fail(error.what());
    }
    return 0;
}

}  // namespace mprox
