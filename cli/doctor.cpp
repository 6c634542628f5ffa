// SPDX-License-Identifier: MIT
#include "cli/doctor.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "engine/address.hpp"
#include "engine/hooks.hpp"
#include "engine/programs.hpp"

namespace mprox {
namespace {

class Report {
  public:
    void line(bool good, const std::string& what, const std::string& remedy, bool needed = true) {
        fmt::print("{} {}{}\n", good ? "yes" : "no ", what, good ? "" : ": " + remedy);
        if (!good && needed) healthy_ = false;
    }
    [[nodiscard]] bool healthy() const { return healthy_; }

  private:
    bool healthy_ = true;
};

bool has_capability(int number) {
    __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    __user_cap_data_struct data[2]{};
    if (::syscall(SYS_capget, &header, data) != 0) return false;
    return data[number / 32].effective & (1u << (number % 32));
}

bool can_repair() {
    const Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    return socket && ::setsockopt(socket.get(), IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) == 0;
}

bool loopback_is_up() {
    const Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request{};
    std::strcpy(request.ifr_name, "lo");
    return socket && ::ioctl(socket.get(), SIOCGIFFLAGS, &request) == 0 && (request.ifr_flags & IFF_UP);
}

bool has_loopback6() {
    const Fd socket(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in6 one{};
    one.sin6_family = AF_INET6;
    one.sin6_addr = in6addr_loopback;
    return socket && ::bind(socket.get(), reinterpret_cast<sockaddr*>(&one), sizeof one) == 0;
}

void check_programs(Report& report) {
    auto dir = RunDir::lock();
    if (!dir) return report.line(false, "shared directory /run/mprox", dir.error());
    auto programs = Programs::open(*dir);
    report.line(programs.has_value(), "BPF programs load, verify and attach", programs ? "" : programs.error());
    if (!programs) return;
    const auto splice = try_splice_programs(*programs);
    report.line(splice.has_value(), "connections go out of the path (tc programs)",
                splice ? "" : splice.error() + "; they are relayed", false);
    programs->sweep(*dir);
}

int doctor() {
    Report report;
    utsname kernel{};
    ::uname(&kernel);
    int major = 0, minor = 0;
    std::sscanf(kernel.release, "%d.%d", &major, &minor);
    report.line(major > 6 || (major == 6 && minor >= 1), fmt::format("kernel 6.1 or later ({})", kernel.release),
                "boot a newer kernel; Debian 12 has 6.1");
    report.line(::access("/sys/kernel/btf/vmlinux", R_OK) == 0, "kernel type information (/sys/kernel/btf/vmlinux)",
                "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' are");
    const Fd cgroup(::fsopen("cgroup2", FSOPEN_CLOEXEC));
    report.line(static_cast<bool>(cgroup), "cgroup v2",
                errno == EPERM ? "run as root" : "boot a kernel built with CONFIG_CGROUPS=y");
    const Fd bpffs(::fsopen("bpf", FSOPEN_CLOEXEC));
    report.line(static_cast<bool>(bpffs), "BPF file system", errno == EPERM ? "run as root" : "boot a kernel built with CONFIG_BPF_SYSCALL=y");
    struct {
        int number;
        const char *name, *why;
    } const needed[] = {{CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "to mount, and to enter members' network namespaces"},
                        {CAP_NET_ADMIN, "CAP_NET_ADMIN", "to answer a held connect()"},
                        {CAP_NET_RAW, "CAP_NET_RAW", "to refuse one"},
                        {CAP_BPF, "CAP_BPF", "to load BPF programs"},
                        {CAP_PERFMON, "CAP_PERFMON", "to follow processes"}};
    for (const auto& capability : needed)
        report.line(has_capability(capability.number), fmt::format("{} ({})", capability.name, capability.why),
                    "run as root (sudo); in a container, add the capability");
    report.line(can_repair(), "TCP_REPAIR", "run as root; the kernel needs CONFIG_CHECKPOINT_RESTORE=y");
    report.line(loopback_is_up(), "loopback device up in this network namespace", "ip link set lo up");
    report.line(has_loopback6(), "IPv6 on loopback", "without it IPv6 destinations fail; sysctl net.ipv6.conf.lo.disable_ipv6=0", false);
    rlimit files{};
    ::getrlimit(RLIMIT_NOFILE, &files);
    report.line(files.rlim_max >= 4096, fmt::format("open files: hard limit {}", files.rlim_max),
                "few connections at once; raise it with ulimit -Hn", false);
    if (::geteuid() == 0)
        check_programs(report);
    else
        report.line(false, "BPF programs load, verify and attach", "run as root (sudo) to try");
    fmt::print("{}\n", report.healthy() ? "mprox run works here." : "mprox run does not work here; see the lines with no.");
    return report.healthy() ? 0 : 1;
}

}  // namespace

void add_doctor_command(CLI::App& app, int& exit_code) {
    app.add_subcommand("doctor", "Say what this kernel and these privileges allow")->callback([&exit_code] { exit_code = doctor(); });
}

}  // namespace mprox
