// SPDX-License-Identifier: MIT
// mprox_create(): what it gives, and its errors in their order: EPERM, EINVAL, EMFILE, ENFILE.
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>

#include <cerrno>
#include <fstream>

#include "tests/abi/descriptor.hpp"
#include "tests/abi/process.hpp"

namespace conformance {
namespace {

int create_error(unsigned flags) {
    const Fd fd(::mprox_create(flags));
    return fd ? 0 : errno;
}

class Create : public testing::TestWithParam<unsigned> {};

TEST_P(Create, GivesADescriptorAsAskedFor) {
    const int lowest = ::dup(STDERR_FILENO);
    ::close(lowest);
    const Fd fd = create(GetParam());
    EXPECT_EQ(fd.get(), lowest);
    EXPECT_EQ(::fcntl(fd.get(), F_GETFD), GetParam() & MUTEX_PROXY_CLOEXEC ? FD_CLOEXEC : 0);
    const int status = ::fcntl(fd.get(), F_GETFL);
    EXPECT_EQ(status & O_ACCMODE, O_RDWR);
    EXPECT_EQ(status & O_NONBLOCK, GetParam() & MUTEX_PROXY_NONBLOCK ? O_NONBLOCK : 0);
}

TEST_P(Create, EveryOperationWorksOnIt) {
    const Fd fd = create(GetParam());
    const Snapshot first = read_snapshot(fd);
    EXPECT_EQ(first["state"], "disabled");
    EXPECT_EQ(first["scope"], GetParam() & MUTEX_PROXY_GLOBAL ? "global" : "members");
    EXPECT_EQ(first["error"], "none");
    EXPECT_EQ(first["members"], "0");
    EXPECT_TRUE(first.servers.empty());
    EXPECT_EQ(config_of(fd).find("server"), std::string::npos);
    configure(fd, "server socks5://10.0.0.1\n");
    EXPECT_TRUE(is_ready(fd, POLLOUT));
    EXPECT_EQ(read_snapshot(fd).servers.size(), 1u);
    EXPECT_FALSE(is_ready(fd, POLLIN));
    const auto stats = stats_of(fd);
    EXPECT_EQ(stats.enabled, 0u);
    EXPECT_EQ(stats.members + stats.active + stats.connecting + stats.connected + stats.refused + stats.failed, 0u);
    EXPECT_EQ(stats.bypassed + stats.blocked + stats.bytes_sent + stats.bytes_received, 0u);
    EXPECT_TRUE(has_line(fdinfo_of(fd), "state: disabled"));
    EXPECT_EQ(::mprox_disable(fd.get()), 0);
    EXPECT_EQ(error_of(::mprox_detach(fd.get(), pidfd_of(::getpid()).get())), ENOENT);
    mutex_proxy_connections list{};
    list.size = sizeof list;
    list.connection_size = sizeof(mutex_proxy_connection);
    EXPECT_EQ(::mprox_get_connections(fd.get(), &list), 0);
    EXPECT_EQ(list.count, 0u);
    EXPECT_EQ(list.more, 0u);
}

TEST_P(Create, EveryDescriptorIsAContextOfItsOwn) {
    const Fd one = create(GetParam()), other = create(GetParam());
    configure(one, "server socks5://10.0.0.1\n");
    EXPECT_EQ(read_snapshot(other).servers.size(), 0u);
    EXPECT_EQ(read_snapshot(one).servers.size(), 1u);
}

INSTANTIATE_TEST_SUITE_P(Flags, Create, testing::Range(0u, MUTEX_PROXY_FLAGS + 1u));

TEST(CreateErrors, UnknownFlags) {
    const std::size_t before = open_descriptors();
    for (unsigned bit = 0; bit < 32; ++bit) {
        const unsigned flag = 1u << bit;
        if (flag & MUTEX_PROXY_FLAGS) continue;
        EXPECT_EQ(create_error(flag), EINVAL) << std::hex << flag;
        EXPECT_EQ(create_error(flag | MUTEX_PROXY_FLAGS), EINVAL) << std::hex << flag;
    }
    EXPECT_EQ(create_error(~0u), EINVAL);
    EXPECT_EQ(open_descriptors(), before);
}

TEST(CreateErrors, CapabilityComesFirst) {
    const int status = in_child([] {
        if (!drop_capability(CAP_NET_ADMIN)) return 101;
        for (const unsigned flags : {0u, 1u, 7u, 8u, ~0u})
            if (create_error(flags) != EPERM) return 102;
        fill_descriptor_table();
        for (const unsigned flags : {0u, 8u, ~0u})
            if (create_error(flags) != EPERM) return 103;
        return 0;
    });
    EXPECT_EQ(status, 0) << "101: cannot drop it, 102: no EPERM, 103: no EPERM with a full descriptor table";
}

TEST(CreateErrors, OtherUsersAreNotPermitted) {
    EXPECT_EQ(in_child([] { return become(65534) ? create_error(0) : 101; }), EPERM);
}

TEST(CreateErrors, CapabilityIsOverTheNetworkNamespace) {
    EXPECT_EQ(in_child([] { return become(65534) && ::unshare(CLONE_NEWUSER) == 0 ? create_error(0) : 101; }),
              EPERM)
        << "root of a user namespace, in a network namespace that is not its own";
    EXPECT_EQ(in_child([] {
                  return become(65534) && ::unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 ? create_error(0) : 101;
              }),
              0)
        << "root of a user namespace, in its own network namespace";
}

TEST(CreateErrors, FlagsComeBeforeAFullDescriptorTable) {
    const int status = in_child([] {
        fill_descriptor_table();
        return create_error(8) == EINVAL && create_error(0) == EMFILE && create_error(7) == EMFILE ? 0 : 101;
    });
    EXPECT_EQ(status, 0);
}

TEST(CreateErrors, FullSystem) {
    const std::string path = "/proc/sys/fs/file-max";
    const std::string before = file_text(path);
    Process child([](const Link& link) {  // whoever has CAP_SYS_ADMIN may exceed the limit
        if (!drop_capability(CAP_SYS_ADMIN)) return 101;
        link.say(1);
        if (link.hear() != 2) return 102;
        link.say(create_error(0));
        return 0;
    });
    ASSERT_EQ(child.link().hear(), 1);
    std::ofstream(path) << "0";
    child.link().say(2);
    const int error = child.link().hear();
    std::ofstream(path) << before;
    EXPECT_EQ(error, ENFILE);
    EXPECT_EQ(child.wait(), 0);
}

}  // namespace
}  // namespace conformance
