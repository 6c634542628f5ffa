// SPDX-License-Identifier: MIT
// The conformance suite of the proxy descriptor, written against <linux/mutex_proxy.h>. Whoever provides it must
// pass.
#include <gtest/gtest.h>
#include <mprox/mprox.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "tests/abi/descriptor.hpp"
#include "tests/abi/process.hpp"

namespace {

constexpr int no_provider = 3;

constexpr const char* usage =
    "usage: abi_test [GoogleTest's options]\n"
    "Runs the conformance suite of the proxy descriptor, as root, in a network namespace of its own.\n"
    "  Enable*  Flow*   need a provider that catches connections (the kernel's: mutex_proxy.ko loaded)\n"
    "  Bare*            need one that does not (mutex_proxy.ko not loaded)\n"
    "  Kernel*          are about what only the kernel's provider shows\n"
    "With the module:     --gtest_filter=-Bare*\n"
    "Without the module:  --gtest_filter=-*Enable*:*Flow*\n"
    "Environment: MPROX_TEST_PATIENCE seconds until something counts as hung (30).\n"
    "Exit status: 0 all passed, 1 a test failed or hung, 3 there is no provider.\n\n";

/// Ends the program, with the name of the test, when one takes far too long.
class Watchdog : public testing::EmptyTestEventListener {
    void OnTestStart(const testing::TestInfo& info) override {
        std::snprintf(message, sizeof message, "abi_test: %s.%s hangs\n", info.test_suite_name(), info.name());
        ::signal(SIGALRM, [](int) {
            const ssize_t written = ::write(STDERR_FILENO, message, std::strlen(message));
            ::_exit(written < 0 ? 2 : 1);
        });
        ::alarm(static_cast<unsigned>(conformance::patience() / 1000 * 10));
    }
    void OnTestEnd(const testing::TestInfo&) override { ::alarm(0); }

    static inline char message[256];
};

// So that nothing here meets the machine's own connections, a GLOBAL context least of all.
bool enter_own_network() {
    if (::unshare(CLONE_NEWNET) != 0) return false;
    const mprox::Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request{};
    std::strcpy(request.ifr_name, "lo");
    if (::ioctl(socket.get(), SIOCGIFFLAGS, &request) != 0) return false;
    request.ifr_flags |= IFF_UP;
    return ::ioctl(socket.get(), SIOCSIFFLAGS, &request) == 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 3 && std::string_view(argv[1]) == "--stay") return conformance::stay_on(std::atoi(argv[2]));
    for (int i = 1; i < argc; ++i)
        if (std::string_view(argv[i]) == "--help") std::fputs(usage, stdout);
    testing::InitGoogleTest(&argc, argv);
    if (testing::GTEST_FLAG(list_tests)) return RUN_ALL_TESTS();
    const auto provider = ::mprox_find_provider();
    if (provider == MPROX_PROVIDER_NONE) {
        std::fprintf(
            stderr, "abi_test: nothing provides mprox_create() here (%s): boot a kernel with CONFIG_MUTEX_PROXY.\n",
            ::strerrorname_np(errno));
        return no_provider;
    }
    if (::geteuid() != 0 || !enter_own_network()) {
        std::fprintf(stderr, "abi_test: cannot make a network namespace (%s): run it as root.\n",
                     ::strerrorname_np(errno));
        return 1;
    }
    std::printf("Provider: %s\n", ::mprox_provider_name(provider));
    ::signal(SIGPIPE, SIG_IGN);
    testing::UnitTest::GetInstance()->listeners().Append(new Watchdog);
    const int failed = RUN_ALL_TESTS();
    if (testing::UnitTest::GetInstance()->test_to_run_count() == 0) {
        std::fprintf(stderr, "abi_test: no test has such a name.\n");
        return 1;
    }
    return failed;
}
