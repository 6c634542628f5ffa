// SPDX-License-Identifier: MIT
// Texts and calls that nobody in his right mind makes: the answer is 0 or the contract's errno, and all goes on.
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>

#include "tests/abi/corpus.hpp"
#include "tests/abi/descriptor.hpp"

namespace conformance {
namespace {

/// Writes it, and looks whether the descriptor still keeps its word.
void survive(const Fd& fd, const std::string& text) {
    const std::string before = config_of(fd);
    const ssize_t written = ::write(fd.get(), text.data(), text.size());
    const int error = error_of(written);
    const bool too_big = text.size() > MUTEX_PROXY_CONFIG_MAX;
    if (error == 0) {
        ASSERT_FALSE(too_big);
        ASSERT_EQ(written, static_cast<ssize_t>(text.size())) << "a short write";
        const std::string canonical = config_of(fd);
        if (!text.empty()) {
            // What has been taken is a configuration: without passwords it can be taken again.
            ASSERT_EQ(write_error(fd, canonical), 0) << "not canonical:\n" << canonical;
            ASSERT_EQ(config_of(fd), canonical);
        }
    } else {
        ASSERT_EQ(error, too_big ? E2BIG : EINVAL);
        ASSERT_EQ(config_of(fd), before) << "a refused text changes nothing";
    }
}

TEST(Hostile, Corpus) {
    const Fd fd = create();
    for (const auto& [name, text] : corpus()) {
        SCOPED_TRACE(name);
        survive(fd, text);
        survive(fd, "server " + text);
        survive(fd, "bypass " + text + "\n");
        if (HasFatalFailure()) return;
    }
    EXPECT_EQ(read_snapshot(fd)["state"], "disabled");
}

TEST(Hostile, Bytes) {
    const Fd fd = create();
    for (int c = 0; c < 256; ++c) {
        const std::string byte(1, static_cast<char>(c));
        for (const std::string& text :
             {byte, byte + "\n", "server socks5://10.0.0.1" + byte, "server socks5://10.0.0.1 " + byte + "\n",
              "#" + byte, "timeout 9" + byte, byte + "timeout 9", std::string(100, byte[0])}) {
            SCOPED_TRACE(testing::PrintToString(text));
            survive(fd, text);
            if (HasFatalFailure()) return;
        }
    }
}

TEST(Hostile, CutAnywhere) {
    const Fd fd = create();
    const std::string text =
        "strategy random\nserver socks5://u:p@10.0.0.1:1 weight=2 priority=3\nbypass [2001:db8::]/32:443\n"
        "on-close refuse\ntimeout 60\nudp block # h\xc3\xa9llo\n";
    for (std::size_t cut = 0; cut <= text.size(); ++cut) {
        SCOPED_TRACE(cut);
        survive(fd, text.substr(0, cut));
        survive(fd, text.substr(cut));
        if (HasFatalFailure()) return;
    }
}

TEST(Hostile, Shapes) {
    const Fd fd = create();
    const std::size_t most = MUTEX_PROXY_CONFIG_MAX;
    for (const std::string& text :
         {std::string(most, '\n'), std::string(most, '\0'), std::string(most, ' '), std::string(most, '#'),
          std::string(most, 'a'), std::string(most, '\xff'), std::string(most + 1, '\n'),
          "server " + std::string(most - 7, ' '), "server socks5://" + std::string(most - 16, 'a'),
          "server socks5://" + std::string(most - 16, ':'), "server socks5://" + std::string(most - 16, '%'),
          "server socks5://" + std::string(most - 16, '@'), "server socks5://[" + std::string(most - 17, ':'),
          "server socks5://h " + std::string(most - 18, '='),
          "server socks5://h weight=" + std::string(most - 25, '0'), "bypass " + std::string(most - 7, '1'),
          "bypass " + std::string(most - 7, '/'), "timeout " + std::string(most - 8, '9')}) {
        SCOPED_TRACE(testing::PrintToString(text.substr(0, 30)));
        survive(fd, text);
        if (HasFatalFailure()) return;
    }
    EXPECT_LE(read_snapshot(fd).text.size(), std::size_t{MUTEX_PROXY_SNAPSHOT_MAX});
}

TEST(Hostile, GeneratedTexts) {
    const Fd fd = create();
    std::mt19937 random(1);  // the same every time
    const std::vector<std::string> words = {"server",
                                            "bypass",
                                            "strategy",
                                            "on-close",
                                            "timeout",
                                            "udp",
                                            "#",
                                            "\n",
                                            "\n",
                                            "\n",
                                            "\r\n",
                                            " ",
                                            "\t",
                                            "=",
                                            ":",
                                            "/",
                                            "@",
                                            "%",
                                            "socks5://10.0.0.1:1080",
                                            "http://u:p@[::1]:3128",
                                            "socks4a://me@proxy.example",
                                            "socks5h://",
                                            "10.0.0.0/8",
                                            "10.0.0.0/8:443",
                                            "[2001:db8::]/32:443",
                                            "::/0",
                                            "weight=",
                                            "weight=1",
                                            "priority=1000",
                                            "1",
                                            "60",
                                            "3600",
                                            "4294967296",
                                            "-1",
                                            "failover",
                                            "round-robin",
                                            "random",
                                            "direct",
                                            "refuse",
                                            "block",
                                            std::string(1, '\0'),
                                            "\xff\xfe",
                                            "\xc3\xa9",
                                            "\x1b[31m"};
    for (int i = 0; i < 3'000; ++i) {
        std::string text;
        for (unsigned left = random() % 24; left > 0; --left) {
            text += words[random() % words.size()];
            if (random() % 4) text += ' ';
        }
        if (!text.empty() && random() % 4 == 0) text[random() % text.size()] = static_cast<char>(random());
        SCOPED_TRACE(testing::PrintToString(text));
        survive(fd, text);
        if (HasFatalFailure()) return;
    }
}

TEST(Hostile, RandomIoctls) {
    const Fd fd = create();
    std::mt19937 random(1);
    std::vector<unsigned char> argument(8192);
    // Pointers among the random words may point here, so it is worthless memory.
    const Edge edge;
    for (int i = 0; i < 5'000; ++i) {
        std::ranges::generate(argument, [&] { return random() % 8 ? 0 : random(); });
        const std::uint32_t size = random() % 4 ? random() % 200 : random();
        std::memcpy(argument.data(), &size, sizeof size);
        const std::uintptr_t pointers[] = {0, reinterpret_cast<std::uintptr_t>(edge.last(random() % 4096)),
                                           ~0ull << (random() % 64)};
        for (const std::size_t at : {8u, 32u})
            std::memcpy(argument.data() + at, &pointers[random() % 3], sizeof pointers[0]);
        const unsigned number = 2 + random() % 10;
        const int error = error_of(::ioctl(fd.get(), _IO(MUTEX_PROXY_IOC_MAGIC, number), argument.data()));
        constexpr int known[] = {0, EINVAL, E2BIG, EFAULT, ENOTTY, ENOSPC, EBADF, ENOENT, ESRCH, EPERM};
        ASSERT_NE(std::ranges::find(known, error), std::end(known))
            << ::strerrorname_np(error) << " for command " << number;
    }
    EXPECT_LE(stats_of(fd).members, 1u);
}

}  // namespace
}  // namespace conformance
