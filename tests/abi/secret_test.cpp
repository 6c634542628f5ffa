// SPDX-License-Identifier: MIT
// Passwords go in and never come out.
#include <fcntl.h>
#include <poll.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "tests/abi/descriptor.hpp"

namespace conformance {
namespace {

constexpr std::string_view secrets[] = {"0pen-sesame", "0pen%2dsesame", "0pen%2Dsesame",
                                        "MHBlbi1zZXNhbWU"};  // the last: base64

void expect_no_secret(const char* where, std::string_view bytes) {
    for (const std::string_view secret : secrets)
        EXPECT_EQ(bytes.find(secret), std::string_view::npos) << where << " tells it";
}

/// All that a descriptor says. It must have news.
void expect_discreet(const Fd& fd) {
    const std::string text = read_snapshot(fd).text;
    expect_no_secret("read()", text);
    expect_no_secret("fdinfo", fdinfo_of(fd));
    expect_no_secret("GET_CONFIG", config_of(fd));
    const auto stats = stats_of(fd);
    expect_no_secret("GET_STATS", {reinterpret_cast<const char*>(&stats), sizeof stats});
}

TEST(Secret, AcceptedPasswordsAreNotShown) {
    const Fd fd = create();
    for (const char* scheme : {"socks5", "socks5h", "socks4", "socks4a", "http"}) {
        SCOPED_TRACE(scheme);
        configure(fd, std::string("server ") + scheme + "://someone:0pen%2dsesame@10.0.0.1 weight=2\nserver " +
                          scheme + "://0pen-sesame:0pen-sesame@[::1]\n");
        expect_discreet(fd);
    }
}

TEST(Secret, RefusedOnesNeither) {
    const Fd fd = create();
    for (const char* line : {
             "server socks5://someone:0pen-sesame@10.0.0.1:0",
             "server socks5://someone:0pen-sesame@",
             "server socks5://someone:0pen-sesame%zz@10.0.0.1",
             "server gopher://someone:0pen-sesame@10.0.0.1",
             "server socks5://someone:0pen-sesame@10.0.0.1 0pen-sesame",
             "server socks5://someone:0pen-sesame@10.0.0.1 weight=0pen-sesame",
             "server socks5://someone:0pen-sesame @10.0.0.1",
             "server 0pen-sesame://10.0.0.1",
             "0pen-sesame",
             "bypass 0pen-sesame",
             "strategy 0pen-sesame",
             "timeout 0pen-sesame",
         }) {
        SCOPED_TRACE(line);
        EXPECT_EQ(write_error(fd, line), EINVAL);
        expect_discreet(fd);
    }
}

TEST(Secret, CommentsAreNotKept) {
    const Fd fd = create();
    configure(fd, "# 0pen-sesame\nserver socks5://10.0.0.1 # 0pen-sesame\n");
    expect_discreet(fd);
}

TEST(KernelSecret, NotInTheLogNorInSysfs) {
    const Fd log(::open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    ASSERT_TRUE(log) << ::strerrorname_np(errno);
    const Fd fd = create();
    configure(fd, "server http://someone:0pen-sesame@10.0.0.1\n");
    EXPECT_EQ(write_error(fd, "server http://someone:0pen-sesame@10.0.0.1:0\n"), EINVAL);
    char record[8192];
    for (;;) {
        const ssize_t length = ::read(log.get(), record, sizeof record);
        if (length < 0 && errno == EPIPE) continue;  // overtaken: the oldest that is left comes next
        if (length < 0) break;
        expect_no_secret("the kernel's log", {record, static_cast<std::size_t>(length)});
    }
    EXPECT_EQ(errno, EAGAIN);
    int files = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator("/sys/kernel/mutex_proxy")) {
        if (!entry.is_regular_file()) continue;
        ++files;
        expect_no_secret(entry.path().c_str(), file_text(entry.path()));
    }
    EXPECT_GE(files, 2);
}

}  // namespace
}  // namespace conformance
