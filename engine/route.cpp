// SPDX-License-Identifier: MIT
#include "engine/route.hpp"

#include <linux/rtnetlink.h>
#include <linux/xfrm.h>
#include <sys/socket.h>

namespace mprox {
namespace {

struct Request {
    nlmsghdr header{};
    rtmsg route{};
    char attributes[128]{};

    void add(unsigned short kind, const void* data, std::size_t size) {
        auto* attribute = reinterpret_cast<rtattr*>(reinterpret_cast<char*>(this) + NLMSG_ALIGN(header.nlmsg_len));
        attribute->rta_type = kind;
        attribute->rta_len = static_cast<unsigned short>(RTA_LENGTH(size));
        std::memcpy(RTA_DATA(attribute), data, size);
        header.nlmsg_len = static_cast<__u32>(NLMSG_ALIGN(header.nlmsg_len) + RTA_ALIGN(attribute->rta_len));
    }
    void add(unsigned short kind, const Address& address) {
        if (address.is_ipv4())
            add(kind, address.ip.byte + 12, 4);
        else
            add(kind, address.ip.byte, 16);
    }
};

Address read(bool ipv4, const void* bytes) {
    Address address;
    if (ipv4) address.ip.word[2] = htonl(0xffff);
    std::memcpy(address.ip.byte + (ipv4 ? 12 : 0), bytes, ipv4 ? 4 : 16);
    return address;
}

struct Route {
    std::uint32_t device = 0;
    Address source;  // the one to be preferred; may be unset
};

std::optional<Route> find_route(Namespace& ns, const Address& from, const Address& to, std::uint32_t device, std::uint32_t mark) {
    const int netlink = ns.netlink();
    if (netlink < 0) return {};
    Request request;
    request.header.nlmsg_len = NLMSG_LENGTH(sizeof request.route);
    request.header.nlmsg_type = RTM_GETROUTE;
    request.header.nlmsg_flags = NLM_F_REQUEST;
    request.route.rtm_family = static_cast<unsigned char>(to.family());
    request.route.rtm_dst_len = to.is_ipv4() ? 32 : 128;
    request.add(RTA_DST, to);
    if (!from.is_unset()) {
        request.route.rtm_src_len = request.route.rtm_dst_len;
        request.add(RTA_SRC, from);
    }
    if (mark) request.add(RTA_MARK, &mark, sizeof mark);
    if (device) request.add(RTA_OIF, &device, sizeof device);
    if (::send(netlink, &request, request.header.nlmsg_len, 0) < 0) return {};
    alignas(nlmsghdr) char answer[4096];
    const ssize_t size = ::recv(netlink, answer, sizeof answer, 0);
    const auto* header = reinterpret_cast<const nlmsghdr*>(answer);
    if (size < static_cast<ssize_t>(sizeof *header) || header->nlmsg_type != RTM_NEWROUTE) return {};
    const auto* route = static_cast<const rtmsg*>(NLMSG_DATA(header));
    if (route->rtm_type != RTN_UNICAST && route->rtm_type != RTN_LOCAL) return {};
    Route found;
    int left = static_cast<int>(RTM_PAYLOAD(header));
    for (const rtattr* attribute = RTM_RTA(route); RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
        if (attribute->rta_type == RTA_ENCAP) return {};  // the kernel's own packets would be wrapped
        if (attribute->rta_type == RTA_OIF) std::memcpy(&found.device, RTA_DATA(attribute), sizeof found.device);
        if (attribute->rta_type == RTA_PREFSRC) found.source = read(to.is_ipv4(), RTA_DATA(attribute));
    }
    if (route->rtm_type == RTN_LOCAL) found.device = 1;
    if (found.device == 0) return {};
    return found;
}

}  // namespace

bool has_ipsec(const Namespace& ns) {
    const Fd netlink = ns.socket(AF_NETLINK, SOCK_RAW, NETLINK_XFRM);
    if (!netlink) return false;  // a kernel without
    struct {
        nlmsghdr header;
        __u32 flags;
    } request{};
    request.header.nlmsg_len = sizeof request;
    request.header.nlmsg_type = XFRM_MSG_GETSPDINFO;
    request.header.nlmsg_flags = NLM_F_REQUEST;
    if (::send(netlink.get(), &request, sizeof request, 0) < 0) return true;
    alignas(nlmsghdr) char answer[1024];
    const ssize_t size = ::recv(netlink.get(), answer, sizeof answer, 0);
    const auto* header = reinterpret_cast<const nlmsghdr*>(answer);
    if (size < static_cast<ssize_t>(sizeof *header) || header->nlmsg_type != XFRM_MSG_NEWSPDINFO) return true;
    int left = static_cast<int>(NLMSG_PAYLOAD(header, sizeof(__u32)));
    const auto* attribute = reinterpret_cast<const rtattr*>(static_cast<const char*>(NLMSG_DATA(header)) + sizeof(__u32));
    for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
        if (attribute->rta_type != XFRMA_SPD_INFO) continue;
        xfrmu_spdinfo info{};
        std::memcpy(&info, RTA_DATA(attribute), sizeof info);
        return info.incnt || info.outcnt;
    }
    return true;
}

std::optional<std::uint32_t> find_device(Namespace& ns, const Address& from, const Address& to, std::uint32_t device,
                                         std::uint32_t mark) {
    auto route = find_route(ns, from, to, device, mark);
    // As connect(2) does: what leads there may depend on the source, and the source on what leads there.
    if (route && from.is_unset() && !route->source.is_unset()) route = find_route(ns, route->source, to, device, mark);
    if (!route) return {};
    return route->device;
}

}  // namespace mprox
