// SPDX-License-Identifier: MIT
// ioctl(): commands, structures of every size, reserved fields, bad pointers.
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "tests/abi/descriptor.hpp"
#include "tests/abi/process.hpp"

namespace conformance {
namespace {

TEST(Ioctl, UnknownCommands) {
    const Fd fd = create();
    char argument[4096]{};
    for (unsigned number = 0; number < 256; ++number) {
        if (number >= 1 && number <= 8) continue;
        EXPECT_EQ(error_of(::ioctl(fd.get(), _IO(MUTEX_PROXY_IOC_MAGIC, number), argument)), ENOTTY) << number;
        EXPECT_EQ(error_of(::ioctl(fd.get(), _IOWR(MUTEX_PROXY_IOC_MAGIC, number, mutex_proxy_stats), argument)),
                  ENOTTY)
            << number;
    }
    for (const unsigned type : {0xB6, 0xB8, 0xFF})
        for (unsigned number = 1; number <= 8; ++number)
            EXPECT_EQ(error_of(::ioctl(fd.get(), _IO(type, number), argument)), ENOTTY) << type << " " << number;
    EXPECT_EQ(error_of(::ioctl(fd.get(), 0x5401 /* TCGETS */, argument)), ENOTTY);
}

TEST(Ioctl, SizeAndDirectionInTheNumberDoNotCount) {
    const Fd fd = create();
    constexpr unsigned long commands[] = {_IO(MUTEX_PROXY_IOC_MAGIC, 5), _IOR(MUTEX_PROXY_IOC_MAGIC, 5, char),
                                          _IOW(MUTEX_PROXY_IOC_MAGIC, 5, char[512])};
    for (const unsigned long command : commands) {
        mutex_proxy_stats stats{};
        stats.size = sizeof stats;
        EXPECT_EQ(::ioctl(fd.get(), command, &stats), 0);
        EXPECT_GT(stats.generation, 0u);
    }
    EXPECT_EQ(::ioctl(fd.get(), _IOW(MUTEX_PROXY_IOC_MAGIC, 2, int), 12345), 0) << "DISABLE ignores its argument";
}

/// A command with a structure, and what it answers when all is as it should be.
struct Command {
    const char* name;
    unsigned long number;
    std::size_t size;
    int error;
};

void PrintTo(const Command& command, std::ostream* out) { *out << command.name; }

class IoctlSize : public testing::TestWithParam<Command> {
  protected:
    /// The error of the command with a structure that says `size`, in so much memory, `tail` as its last byte.
    int call(std::uint32_t size, std::size_t memory, char tail = 0) {
        std::vector<char> argument(memory);
        fill(argument);
        std::memcpy(argument.data(), &size, sizeof size);
        if (tail) argument.back() = tail;
        const std::vector<char> before = argument;
        const int error = error_of(::ioctl(fd.get(), GetParam().number, argument.data()));
        const std::size_t known = std::min(memory, GetParam().size);
        EXPECT_EQ(std::memcmp(argument.data() + known, before.data() + known, memory - known), 0)
            << "written beyond what the provider knows";
        EXPECT_EQ(std::memcmp(argument.data(), before.data(), sizeof size), 0) << "size is the caller's";
        return error;
    }
    void fill(std::vector<char>& argument) {
        if (GetParam().number == MUTEX_PROXY_IOC_ATTACH || GetParam().number == MUTEX_PROXY_IOC_DETACH)
            std::memcpy(argument.data() + offsetof(mutex_proxy_target, pidfd), &self_number, sizeof self_number);
        const std::uint32_t entry = sizeof(mutex_proxy_connection);
        if (GetParam().number == MUTEX_PROXY_IOC_GET_CONNECTIONS)
            std::memcpy(argument.data() + offsetof(mutex_proxy_connections, connection_size), &entry, sizeof entry);
    }

    const Fd fd = create();
    const Fd self = pidfd_of(::getpid());
    const std::int32_t self_number = self.get();
};

TEST_P(IoctlSize, AsItIs) { EXPECT_EQ(call(GetParam().size, GetParam().size), GetParam().error); }

TEST_P(IoctlSize, TooShort) {
    for (const std::size_t size :
         {std::size_t{0}, std::size_t{1}, std::size_t{4}, GetParam().size - 4, GetParam().size - 1}) {
        if (size >= GetParam().size) continue;
        EXPECT_EQ(call(static_cast<std::uint32_t>(size), GetParam().size), EINVAL) << size;
    }
}

TEST_P(IoctlSize, LongerWithZeroes) {
    for (const std::size_t more : {1, 4, 8, 64, 1000})
        EXPECT_EQ(call(static_cast<std::uint32_t>(GetParam().size + more), GetParam().size + more),
                  GetParam().error)
            << more;
    EXPECT_EQ(call(4096, 4096), GetParam().error) << "the most there may be";
}

TEST_P(IoctlSize, LongerWithSomethingUnknown) {
    for (const std::size_t more : {1, 4, 8, 64, 1000})
        EXPECT_EQ(call(static_cast<std::uint32_t>(GetParam().size + more), GetParam().size + more, 1), E2BIG)
            << more;
    EXPECT_EQ(call(4096, 4096, 1), E2BIG);
}

TEST_P(IoctlSize, FarTooLong) {
    EXPECT_EQ(call(4097, 8192), E2BIG);
    EXPECT_EQ(call(65536, 65536), E2BIG);
    EXPECT_EQ(call(0x80000000u, 8192), E2BIG);
    EXPECT_EQ(call(0xFFFFFFFFu, 8192), E2BIG);
}

TEST_P(IoctlSize, BadPointer) {
    const Edge edge;
    const auto error = [this](const void* argument) {
        return error_of(::ioctl(fd.get(), GetParam().number, argument));
    };
    EXPECT_EQ(error(nullptr), EFAULT);
    EXPECT_EQ(error(edge.beyond()), EFAULT);
    EXPECT_EQ(error(reinterpret_cast<void*>(~0ull << 20)), EFAULT) << "an address of the kernel's";
    const auto size = static_cast<std::uint32_t>(GetParam().size);
    std::memcpy(edge.last(sizeof size), &size, sizeof size);
    EXPECT_EQ(error(edge.last(sizeof size)), EFAULT) << "only the size is there";
    const auto longer = static_cast<std::uint32_t>(GetParam().size + 8);
    std::vector<char> whole(GetParam().size);
    fill(whole);
    std::memcpy(whole.data(), &longer, sizeof longer);
    std::memcpy(edge.last(whole.size()), whole.data(), whole.size());
    EXPECT_EQ(error(edge.last(whole.size())), EFAULT) << "the tail is missing";
}

INSTANTIATE_TEST_SUITE_P(
    Commands, IoctlSize,
    testing::Values(Command{"SetConfig", MUTEX_PROXY_IOC_SET_CONFIG, sizeof(mutex_proxy_config_text), 0},
                    Command{"GetConfig", MUTEX_PROXY_IOC_GET_CONFIG, sizeof(mutex_proxy_config_text), ENOSPC},
                    Command{"GetStats", MUTEX_PROXY_IOC_GET_STATS, sizeof(mutex_proxy_stats), 0},
                    Command{"Attach", MUTEX_PROXY_IOC_ATTACH, sizeof(mutex_proxy_target), 0},
                    Command{"Detach", MUTEX_PROXY_IOC_DETACH, sizeof(mutex_proxy_target), ENOENT},
                    Command{"GetConnections", MUTEX_PROXY_IOC_GET_CONNECTIONS, sizeof(mutex_proxy_connections), 0}),
    [](const auto& command) { return command.param.name; });

TEST(IoctlFields, ConfigOverTheLimit) {
    const Fd fd = create();
    char byte = '#';
    for (const std::uint32_t length : {MUTEX_PROXY_CONFIG_MAX + 1u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
        mutex_proxy_config_text config{
            .size = sizeof config, .length = length, .text = reinterpret_cast<std::uintptr_t>(&byte)};
        EXPECT_EQ(error_of(::ioctl(fd.get(), MUTEX_PROXY_IOC_SET_CONFIG, &config)), E2BIG) << length;
    }
}

TEST(IoctlFields, EmptyConfigNeedsNoText) {
    const Fd fd = create();
    configure(fd, "timeout 9\n");
    EXPECT_EQ(::mprox_set_config(fd.get(), nullptr, 0), 0);
    EXPECT_EQ(read_snapshot(fd)["timeout"], "60");
}

TEST(IoctlFields, ConnectionsReserved) {
    const Fd fd = create();
    mutex_proxy_connections list{};
    list.size = sizeof list;
    list.connection_size = sizeof(mutex_proxy_connection);
    list.reserved = 1;
    EXPECT_EQ(error_of(::mprox_get_connections(fd.get(), &list)), EINVAL);
}

TEST(IoctlFields, ConnectionSize) {
    const Fd fd = create();
    const auto error = [&fd](std::uint32_t size) {
        mutex_proxy_connections list{};
        list.size = sizeof list;
        list.connection_size = size;
        return error_of(::mprox_get_connections(fd.get(), &list));
    };
    EXPECT_EQ(error(0), EINVAL);
    EXPECT_EQ(error(sizeof(mutex_proxy_connection) - 1), EINVAL);
    EXPECT_EQ(error(sizeof(mutex_proxy_connection)), 0);
    EXPECT_EQ(error(sizeof(mutex_proxy_connection) + 8), 0);
    EXPECT_EQ(error(4096), 0);
    EXPECT_EQ(error(4097), E2BIG);
    EXPECT_EQ(error(0xFFFFFFFFu), E2BIG);
}

TEST(IoctlFields, ConnectionsOutIsWritten) {
    const Fd fd = create();
    mutex_proxy_connection entry{};
    mutex_proxy_connections list{};
    list.size = sizeof list;
    list.connection_size = sizeof entry;
    list.after = ~0ull;
    list.capacity = 0xFFFFFFFF;  // room is the caller's word; what is not needed is not touched
    list.count = 17;
    list.more = 1;
    list.connections = reinterpret_cast<std::uintptr_t>(&entry);
    EXPECT_EQ(::mprox_get_connections(fd.get(), &list), 0);
    EXPECT_EQ(list.count, 0u);
    EXPECT_EQ(list.more, 0u);
}

}  // namespace
}  // namespace conformance
