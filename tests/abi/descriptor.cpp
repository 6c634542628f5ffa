// SPDX-License-Identifier: MIT
#include "tests/abi/descriptor.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <sstream>

namespace conformance {
namespace {

using Clock = std::chrono::steady_clock;

class Deadline {
  public:
    [[nodiscard]] int left() const {
        const auto rest = std::chrono::ceil<std::chrono::milliseconds>(end_ - Clock::now()).count();
        return rest > 0 ? static_cast<int>(rest) : 0;
    }

  private:
    Clock::time_point end_ = Clock::now() + std::chrono::milliseconds(patience());
};

short polled(const Fd& fd, short events, int timeout) {
    pollfd entry{.fd = fd.get(), .events = events, .revents = 0};
    while (::poll(&entry, 1, timeout) < 0 && errno == EINTR) continue;
    return entry.revents;
}

}  // namespace

int patience() {
    static const int value = [] {
        const char* text = std::getenv("MPROX_TEST_PATIENCE");
        const int seconds = text ? std::atoi(text) : 0;
        return 1000 * (seconds > 0 ? seconds : 30);
    }();
    return value;
}

int error_of(long result) { return result < 0 ? errno : 0; }

Fd create(unsigned flags) {
    Fd fd(::mprox_create(flags));
    EXPECT_TRUE(fd) << "mprox_create: " << ::strerrorname_np(errno);
    return fd;
}

int write_error(const Fd& fd, std::string_view text) {
    const ssize_t n = ::write(fd.get(), text.data(), text.size());
    const int error = error_of(n);
    if (n >= 0) {
        EXPECT_EQ(static_cast<std::size_t>(n), text.size()) << "a short write";
    }
    return error;
}

void configure(const Fd& fd, std::string_view text) {
    const int error = write_error(fd, text);
    ASSERT_EQ(error, 0) << ::strerrorname_np(error) << " for:\n" << text.substr(0, 2000);
}

std::string config_of(const Fd& fd) {
    std::string text(1024, '\0');
    for (;;) {  // another may make it longer meanwhile
        std::size_t needed = 0;
        const ssize_t length = ::mprox_get_config(fd.get(), text.data(), text.size(), &needed);
        if (length < 0 && errno == ENOSPC && needed > text.size()) {
            text.resize(needed);
            continue;
        }
        EXPECT_GE(length, 0) << ::strerrorname_np(errno);
        text.resize(length < 0 ? 0 : static_cast<std::size_t>(length));
        return text;
    }
}

mutex_proxy_stats stats_of(const Fd& fd) {
    mutex_proxy_stats stats{};
    stats.size = sizeof stats;
    EXPECT_EQ(::mprox_get_stats(fd.get(), &stats), 0) << ::strerrorname_np(errno);
    return stats;
}

Snapshot::Snapshot(std::string from) : text(std::move(from)) {
    EXPECT_TRUE(text.ends_with('\n')) << text;
    EXPECT_EQ(text.find('\0'), std::string::npos);
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        const std::size_t colon = line.find(": ");
        if (colon == std::string::npos || line.find_first_of(" \t") < colon) {
            ADD_FAILURE() << "not \"key: value\": " << line;
            continue;
        }
        const std::string key = line.substr(0, colon);
        if (key == "server") servers.push_back(line.substr(colon + 2));
        else EXPECT_TRUE(values.emplace(key, line.substr(colon + 2)).second) << "twice: " << key;
        keys.push_back(key);
    }
}

std::string Snapshot::operator[](std::string_view key) const {
    const auto found = values.find(key);
    if (found != values.end()) return found->second;
    ADD_FAILURE() << "no line '" << key << "' in:\n" << text;
    return {};
}

std::uint64_t Snapshot::number(std::string_view key) const {
    const std::string value = (*this)[key];
    EXPECT_FALSE(value.empty() || value.find_first_not_of("0123456789") != std::string::npos)
        << key << ": " << value;
    return std::strtoull(value.c_str(), nullptr, 10);
}

bool is_ready(const Fd& fd, short events) { return (polled(fd, events, 0) & events) == events; }

bool await(const Fd& fd, short events) { return (polled(fd, events, patience()) & events) == events; }

void await_asleep(pid_t thread) {
    const Deadline deadline;
    const std::string path = "/proc/self/task/" + std::to_string(thread) + "/stat";
    while (deadline.left()) {
        const std::string stat = file_text(path);
        const std::size_t name_end = stat.rfind(") ");
        if (name_end != std::string::npos && stat[name_end + 2] == 'S') return;
        ::sched_yield();
    }
    ADD_FAILURE() << "thread " << thread << " does not go to sleep";
}

Snapshot read_snapshot(const Fd& fd) {
    EXPECT_TRUE(await(fd, POLLIN)) << "nothing to read";
    std::string text(MUTEX_PROXY_SNAPSHOT_MAX, '\0');
    const ssize_t length = ::mprox_snapshot(fd.get(), text.data(), text.size());
    EXPECT_GT(length, 0) << ::strerrorname_np(errno);
    text.resize(length < 0 ? 0 : static_cast<std::size_t>(length));
    return Snapshot(std::move(text));
}

void drain(const Fd& fd) {
    // A change that came just after a read becomes readable only later: the generation tells whether there is one.
    const Deadline deadline;
    while (deadline.left()) {
        const Snapshot snapshot = read_snapshot(fd);
        if (snapshot.number("generation") == stats_of(fd).generation) return;
    }
    ADD_FAILURE() << "the news does not end";
}

void await_members(const Fd& fd, std::uint64_t members) {
    const Deadline deadline;
    char text[MUTEX_PROXY_SNAPSHOT_MAX];
    for (;;) {
        const std::uint64_t now = stats_of(fd).members;
        if (now == members) return;
        if (!(polled(fd, POLLIN, deadline.left()) & POLLIN)) {
            ADD_FAILURE() << now << " members and no news, instead of " << members;
            return;
        }
        ASSERT_GT(::mprox_snapshot(fd.get(), text, sizeof text), 0) << ::strerrorname_np(errno);
    }
}

std::string file_text(const std::string& path) {
    const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    std::string text;
    char buffer[4096];
    for (ssize_t length; (length = ::read(file.get(), buffer, sizeof buffer)) > 0;)
        text.append(buffer, static_cast<std::size_t>(length));
    return text;
}

std::string fdinfo_of(const Fd& fd) { return file_text("/proc/self/fdinfo/" + std::to_string(fd.get())); }

std::size_t open_descriptors() {
    const std::filesystem::directory_iterator all("/proc/self/fd");
    return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

bool has_line(std::string_view text, std::string_view line) {
    return ("\n" + std::string(text)).find("\n" + std::string(line) + "\n") != std::string::npos;
}

Edge::Edge() : page_(static_cast<std::size_t>(::sysconf(_SC_PAGESIZE))) {
    void* const pages = ::mmap(nullptr, 2 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(pages, MAP_FAILED);
    end_ = static_cast<char*>(pages) + page_;
    EXPECT_EQ(::mprotect(end_, page_, PROT_NONE), 0);
}

Edge::~Edge() { ::munmap(end_ - page_, 2 * page_); }

}  // namespace conformance
