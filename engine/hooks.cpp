// SPDX-License-Identifier: MIT
#include "engine/hooks.hpp"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <memory>
#include <vector>

#include "bpf/splice.skel.h"
#include "engine/rundir.hpp"

namespace mprox {
namespace {

constexpr std::uint32_t loopback = 1;
// Before other filters, any of which may end the search; ours leave alone what they do not know. The handle is ours.
constexpr std::uint32_t priority = 1, handle = 0x4d58;
// Of <linux/bpf.h> since 6.6.
constexpr auto tcx_ingress = static_cast<bpf_attach_type>(46), tcx_egress = static_cast<bpf_attach_type>(47);
constexpr std::uint32_t before_all = 1u << 3;  // BPF_F_BEFORE, and nothing named
// How long a connection of a dead engine is kept when the application has closed its end and the server has not.
constexpr std::uint64_t closed_limit = 120'000'000'000;

enum class Link { ethernet, bare, other };

Link link_of(std::uint32_t device) {
    const Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request{};
    if (!::if_indextoname(device, request.ifr_name) || ::ioctl(socket.get(), SIOCGIFHWADDR, &request) != 0)
        return Link::other;
    switch (request.ifr_hwaddr.sa_family) {
        case ARPHRD_ETHER: return Link::ethernet;
        case ARPHRD_NONE:
        case ARPHRD_PPP:
        case ARPHRD_TUNNEL:
        case ARPHRD_TUNNEL6:
        case ARPHRD_SIT:
        case ARPHRD_IPGRE:
        case 519: return Link::bare;  // ARPHRD_RAWIP
        default: return Link::other;
    }
}

bpf_tc_hook hook_of(std::uint32_t device) {
    bpf_tc_hook hook{};
    hook.sz = sizeof hook;
    hook.ifindex = static_cast<int>(device);
    hook.attach_point = device == loopback ? BPF_TC_EGRESS : BPF_TC_INGRESS;
    return hook;
}

bpf_tc_opts our_filter() {
    bpf_tc_opts options{};
    options.sz = sizeof options;
    options.handle = handle;
    options.priority = priority;
    return options;
}

// An error of the kernel's, or 0.
int share_maps(mprox_splice_bpf& bpf, const Programs& programs) {
    for (const auto& [name, map] : programs.shared())
        if (const int error = bpf_map__reuse_fd(bpf_object__find_map_by_name(bpf.obj, name), map)) return error;
    return 0;
}

std::string pin_of(const Programs& programs, const mprox_hook& hook) {
    return programs.directory() + "/tcx_" + std::to_string(hook.netns) + "_" + std::to_string(hook.ifindex);
}

// A link outlives its device, and then names none.
bool is_linked(const std::string& pin) {
    const Fd link(bpf_obj_get(pin.c_str()));
    bpf_link_info info{};
    __u32 size = sizeof info;
    return link && bpf_obj_get_info_by_fd(link.get(), &info, &size) == 0 && info.xdp.ifindex != 0;  // tcx says it there too
}

// Inside the namespace, as all that follow. An error of the kernel's, or 0.
int attach_link(int program, std::uint32_t device, Fd& link) {
    LIBBPF_OPTS(bpf_link_create_opts, options);
    options.flags = before_all;
    const int fd = bpf_link_create(program, static_cast<int>(device), device == loopback ? tcx_egress : tcx_ingress, &options);
    if (fd >= 0) link = Fd(fd);
    return std::min(fd, 0);
}

bool is_attached(std::uint32_t device) {
    const bpf_tc_hook hook = hook_of(device);
    bpf_tc_opts options = our_filter();
    if (bpf_tc_query(&hook, &options) != 0) return false;
    const Fd program(bpf_prog_get_fd_by_id(options.prog_id));
    bpf_prog_info info{};
    __u32 size = sizeof info;
    return program && bpf_obj_get_info_by_fd(program.get(), &info, &size) == 0 &&
           std::strncmp(info.name, "mprox_", 6) == 0;
}

bool has_filters(std::uint32_t device, std::uint32_t parent) {
    const Fd netlink(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    struct {
        nlmsghdr header;
        tcmsg filter;
    } request{};
    request.header.nlmsg_len = sizeof request;
    request.header.nlmsg_type = RTM_GETTFILTER;
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.filter.tcm_family = AF_UNSPEC;
    request.filter.tcm_ifindex = static_cast<int>(device);
    request.filter.tcm_parent = parent;
    if (::send(netlink.get(), &request, sizeof request, 0) < 0) return true;
    alignas(nlmsghdr) char answer[16384];
    const ssize_t size = ::recv(netlink.get(), answer, sizeof answer, 0);
    const auto* header = reinterpret_cast<const nlmsghdr*>(answer);
    return size < static_cast<ssize_t>(sizeof *header) || header->nlmsg_type != NLMSG_DONE;
}

void detach(std::uint32_t device, bool qdisc_too) {
    bpf_tc_hook hook = hook_of(device);
    bpf_tc_opts options = our_filter();
    if (!is_attached(device)) return;
    bpf_tc_detach(&hook, &options);
    if (!qdisc_too || has_filters(device, TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)) ||
        has_filters(device, TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS)))
        return;
    hook.attach_point = static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS);
    bpf_tc_hook_destroy(&hook);
}

template <typename Key>
std::vector<Key> keys_of(int map) {
    std::vector<Key> keys;
    Key next{};
    for (const void* from = nullptr; bpf_map_get_next_key(map, from, &next) == 0; from = &keys.back()) keys.push_back(next);
    return keys;
}

mprox_splice_key reverse_of(const mprox_splice_key& key, const mprox_splice& value) {
    return {.netns = key.netns,
            .source = value.destination,
            .destination = value.source,
            .source_port = value.destination_port,
            .destination_port = value.source_port,
            .pad = 0};
}

}  // namespace

std::expected<void, std::string> Hooks::ensure(const Namespace& ns, std::uint32_t device) {
    for (const std::uint32_t index : {loopback, device})
        if (!ensured_.contains({ns.cookie(), index})) {
            if (auto done = ensure_one(ns, index); !done) return done;
            ensured_.insert({ns.cookie(), index});
        }
    return {};
}

std::expected<void, std::string> Hooks::ensure_one(const Namespace& ns, std::uint32_t device) {
    const auto failed = [](const char* what, int error) {
        return std::unexpected(std::string(what) + ": " + std::strerror(error));
    };
    const auto dir = RunDir::lock();
    if (!dir) return std::unexpected(dir.error());
    const mprox_hook_user user{.netns = ns.cookie(), .context = {.slot = context_.slot, .generation = context_.generation}};
    const mprox_hook key{.netns = ns.cookie(), .ifindex = device, .pad = 0};
    const std::string pin = pin_of(programs_, key);
    std::uint32_t kind = 1;
    if (bpf_map_update_elem(programs_.hook_users(), &user, &kind, BPF_ANY) != 0)
        return failed("no room for a tc program", errno);
    const bool known = bpf_map_lookup_elem(programs_.hooks(), &key, &kind) == 0;
    Link link = Link::ethernet;
    bool attached = known && kind == MPROX_HOOK_LINK && is_linked(pin);
    ns.visit([&] {
        if (device != loopback) link = link_of(device);
        if (known && kind != MPROX_HOOK_LINK) attached = is_attached(device);
    });
    if (attached) return {};
    if (link == Link::other) return std::unexpected("the server is reached through a device of an unknown kind");

    const std::unique_ptr<mprox_splice_bpf, void (*)(mprox_splice_bpf*)> bpf(mprox_splice_bpf__open(), mprox_splice_bpf__destroy);
    if (!bpf) return failed("cannot read the BPF programs", errno);
    bpf_program* wanted = device == loopback ? bpf->progs.mprox_lo
                          : link == Link::bare ? bpf->progs.mprox_bare
                                               : bpf->progs.mprox_ether;
    for (bpf_program* program : {bpf->progs.mprox_lo, bpf->progs.mprox_ether, bpf->progs.mprox_bare})
        bpf_program__set_autoload(program, program == wanted);
    bpf->rodata->netns = ns.cookie();
    if (const int error = share_maps(*bpf, programs_)) return failed("cannot use the maps", -error);
    if (const int error = mprox_splice_bpf__load(bpf.get())) return failed("the kernel refused the BPF programs", -error);
    const int program = bpf_program__fd(wanted);
    // Known before it is there: whatever ends us here, somebody finds it.
    const auto note = [&](std::uint32_t how) { return bpf_map_update_elem(programs_.hooks(), &key, &how, BPF_ANY) == 0; };
    if (!known || kind == MPROX_HOOK_LINK) {
        if (!note(MPROX_HOOK_LINK)) return failed("no room for a tc program", errno);
        ::unlink(pin.c_str());
        Fd made;
        int error = 0;
        ns.visit([&] { error = attach_link(program, device, made); });
        if (error == 0 && bpf_obj_pin(made.get(), pin.c_str()) == 0) return {};
        if (error == 0) return failed("cannot pin a tc program", errno);
        if (error != -EINVAL) return failed("cannot attach a tc program", -error);
        kind = MPROX_HOOK_FILTER;  // a kernel without
    }
    int error = 0;
    ns.visit([&] {
        bpf_tc_hook hook = hook_of(device);
        error = bpf_tc_hook_create(&hook);
        if (error == 0) kind = MPROX_HOOK_QDISC;
        if (error != 0 && error != -EEXIST) return;
        if (!note(kind)) {
            error = -errno;
            return;
        }
        bpf_tc_opts options = our_filter();
        options.prog_fd = program;
        options.flags = BPF_TC_F_REPLACE;
        error = bpf_tc_attach(&hook, &options);
    });
    if (error != 0) return failed("cannot attach a tc program", -error);
    return {};
}

std::expected<void, std::string> try_splice_programs(const Programs& programs) {
    const std::unique_ptr<mprox_splice_bpf, void (*)(mprox_splice_bpf*)> bpf(mprox_splice_bpf__open(), mprox_splice_bpf__destroy);
    if (!bpf) return std::unexpected(std::string("cannot read the BPF programs: ") + std::strerror(errno));
    int error = share_maps(*bpf, programs);
    if (!error) error = mprox_splice_bpf__load(bpf.get());
    if (error) return std::unexpected(std::string("the kernel refused the BPF programs: ") + std::strerror(-error));
    return {};
}

bool tidy_splices(const Programs& programs) {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    const std::uint64_t nanoseconds = static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000;
    Namespaces namespaces;
    std::set<std::uint64_t> wanted, gone;
    const auto exists = [&](std::uint64_t netns) {
        if (wanted.contains(netns)) return true;
        if (gone.contains(netns)) return false;
        const bool found = namespaces.find(netns, 0) != nullptr;
        if (!found) gone.insert(netns);
        return found;
    };

    for (const auto& user : keys_of<mprox_hook_user>(programs.hook_users())) {
        if (programs.is_alive(user.context))
            wanted.insert(user.netns);
        else
            bpf_map_delete_elem(programs.hook_users(), &user);
    }
    bool orphans = false;
    for (const auto& key : keys_of<mprox_splice_key>(programs.splices())) {
        mprox_splice value{}, outward{}, inward{};
        if (bpf_map_lookup_elem(programs.splices(), &key, &value) != 0 || programs.is_alive(value.owner)) continue;
        const mprox_splice_key reverse = reverse_of(key, value);
        bool keep = value.way != MPROX_WAY_WATCH && exists(key.netns);
        if (keep) {
            mprox_splice& other = value.outward ? inward : outward;
            (value.outward ? outward : inward) = value;
            keep = bpf_map_lookup_elem(programs.splices(), &reverse, &other) == 0 && outward.outward && !inward.outward;
        }
        // Ended both ways, as an engine sees it that goes: TIME_WAIT is not waited for.
        const bool ended = ((inward.seen | outward.seen) & MPROX_SEEN_RST) || (inward.seen & MPROX_SEEN_FIN);
        if ((outward.seen & MPROX_CLOSED) && (ended || nanoseconds > outward.closed + closed_limit)) keep = false;
        if (keep) {
            orphans = true;
            wanted.insert(key.netns);
        } else {
            bpf_map_delete_elem(programs.splices(), &key);
        }
    }
    for (const auto& hook : keys_of<mprox_hook>(programs.hooks())) {
        if (wanted.contains(hook.netns)) continue;
        std::uint32_t kind = MPROX_HOOK_FILTER;
        bpf_map_lookup_elem(programs.hooks(), &hook, &kind);
        if (kind == MPROX_HOOK_LINK)
            ::unlink(pin_of(programs, hook).c_str());
        else if (const auto ns = namespaces.find(hook.netns, 0))
            ns->visit([&] { detach(hook.ifindex, kind == MPROX_HOOK_QDISC); });
        bpf_map_delete_elem(programs.hooks(), &hook);
    }
    return orphans;
}

}  // namespace mprox
