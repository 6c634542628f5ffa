// SPDX-License-Identifier: MIT
#include "engine/splice.hpp"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <bit>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/answer.hpp"
#include "engine/ready.hpp"
#include "engine/route.hpp"
#include "engine/tcp_options.hpp"

namespace mprox {

using namespace std::chrono_literals;

namespace {

constexpr std::uint32_t loopback = 1;
// What the routing table says of a server is asked again after so long.
constexpr auto device_lifetime = 1s;
// Bytes that have arrived already and are sent to the application by hand: what any socket takes at first.
constexpr std::size_t handed_most = 16 * 1024;
// After the end of an application's socket: a reset is still on its way; a FIN of the server may be; the kernel answers
// late packets for this long (TCP_TIMEWAIT_LEN).
constexpr auto last_words = 50ms;
constexpr auto last_words_limit = 2s;
constexpr auto server_pause = 250ms;
constexpr auto server_limit = 120s;
constexpr auto time_wait = 60s;
// Frozen sockets kept for connections in TIME_WAIT.
constexpr std::size_t resting_most = 16'384;
// A port that a connection has to itself is missed by all others on this host: with so many in use none rests.
constexpr std::size_t resting_ports_most = 2048;

constexpr const char* table_full = "the table of spliced connections is full";
using Tick = std::chrono::duration<std::chrono::milliseconds::rep, std::ratio<1, 100>>;

enum TcpStateNumber { fin_wait_1 = 4, fin_wait_2 = 5, closing = 11 };  // of enum tcp_state

const char* reason(mprox_handed handed) {
    switch (handed) {
        case MPROX_HANDED_UNSEEN:
            return "the server's packets do not come in as its address and port (NAT?), or not where they should";
        case MPROX_HANDED_ELSEWHERE:
            return "the server's packets come in by another device";
        case MPROX_HANDED_BUSY:
            return "the server sends in the very moment";
        default:
            return table_full;
    }
}

std::uint32_t milliseconds(std::uint64_t time) { return static_cast<std::uint32_t>(time / 1'000'000); }

// The largest segment that the server's MSS comes to when timestamps take their room.
std::uint16_t offered_mss(const TcpState& state) {
    return static_cast<std::uint16_t>(std::min<std::uint32_t>(state.mss + (state.timestamps ? 12 : 0), 0xffff));
}

std::uint16_t first_window(const TcpState& state) { return static_cast<std::uint16_t>(std::min<std::uint32_t>(state.send_window, 0xffff)); }

// In the place of a connection's own socket, as there is none. `inward`: of the server's packets.
void reset_server(Namespace& ns, const mprox_splice_key& inward, std::uint32_t sequence, std::uint32_t acknowledgement) {
    mprox_event ends{};
    ends.held = inward.destination;
    ends.held_port = ntohs(inward.destination_port);
    ends.source = inward.source;
    ends.source_port = ntohs(inward.source_port);
    ends.ipv6 = !Address{.ip = inward.source, .port = 0}.is_ipv4();
    send_segment(ns, ends, {.sequence = sequence, .acknowledgement = acknowledgement, .flags = TH_RST | TH_ACK});
}

// Does the firewall follow the connections of this namespace? It would see a spliced one begin and never end: its table
// would fill, and the next connection with the same names would meet what is left of the last. And on lo a translation in
// the middle confuses it.
bool tracks_connections(const Namespace& ns) {
    bool tracked = false;
    ns.visit([&] {
        const Fd file(::open("/proc/sys/net/netfilter/nf_conntrack_count", O_RDONLY | O_CLOEXEC));
        char text[16] = "";
        tracked = file && ::read(file.get(), text, sizeof text - 1) > 0 && std::atoi(text) > 0;
    });
    return tracked;
}

}  // namespace

struct Splicer::Spliced {
    mprox_event held{};
    std::shared_ptr<Namespace> ns;
    Descriptor server;  // frozen: it is silent, and keeps the port,
    Fd port;            // or this does
    mprox_hand_over entries{};
    mprox_measured outward{}, inward{};  // of the entries, when they were last looked at
    std::uint64_t up = 0, down = 0;      // counted so far
    std::vector<std::uint8_t> handed;  // what had arrived before
    std::uint32_t sequence = 0;        // of its first byte
    std::uint16_t window = 0;
    Options syn_options, options;
    bool is_closed = false, rests = false;
    std::uint8_t state = 0;  // before it was closed
    std::chrono::steady_clock::time_point closed_at{};

    [[nodiscard]] Segment syn_ack() const {
        return {.sequence = sequence - 1,
                .acknowledgement = held.sequence + 1,
                .window = window,
                .flags = TH_SYN | TH_ACK,
                .options = syn_options.get(),
                .payload = {}};
    }
};

Splicer::Splicer(Poller& poller, const Programs& programs, const mprox_call& context, std::uint32_t shard,
                 Account& account, const std::size_t& descriptors, std::function<void()> changed)
    : poller_(poller),
      programs_(programs),
      context_(context),
      shard_(shard),
      account_(account),
      descriptors_(descriptors),
      changed_(std::move(changed)),
      hooks_(programs, context),
      timer_(poller) {}

std::optional<std::uint32_t> Splicer::device_towards(Namespace& ns, const DialOptions& options, const Address& from,
                                                     const Address& to) {
    std::string key(reinterpret_cast<const char*>(&from.ip), sizeof from.ip);
    key.append(reinterpret_cast<const char*>(&to.ip), sizeof to.ip);
    for (const std::uint64_t number : {ns.cookie(), std::uint64_t{options.device} << 32 | options.mark})
        key.append(reinterpret_cast<const char*>(&number), sizeof number);
    const auto now = Clock::now();
    if (const auto known = devices_.find(key); known != devices_.end() && known->second.until > now) return known->second.index;
    const auto device = find_device(ns, from, to, to.is_loopback() ? 0 : options.device, options.mark);
    if (device && *device != loopback && has_ipsec(ns)) return {};
    if (devices_.size() > 1000) devices_.clear();
    if (device) devices_[key] = {.index = *device, .until = now + device_lifetime};
    return device;
}

bool Splicer::is_tracked(const Namespace& ns) {
    const auto now = Clock::now();
    if (tracking_.size() > 1000) tracking_.clear();
    Tracking& known = tracking_[ns.cookie()];
    if (known.until <= now) known = {.tracked = tracks_connections(ns), .until = now + device_lifetime};
    return known.tracked;
}

std::uint32_t Splicer::window_clamp(const mprox_event& held) { return 0xffffu << read_offer(held).scale.value_or(0); }

std::optional<std::string> Splicer::unsuited(const mprox_event& held, const Server& server) {
    if (server.address.is_ipv4() == (held.ipv6 != 0)) return "the application's packets and the server's are not of one IP version";
    if (held.ip_options) return "the application's socket sends IP options";
    return {};
}

void Splicer::expect(Namespace& ns, const Address& server) {
    const auto device = device_towards(ns, {}, {}, server);
    if (device && !is_tracked(ns)) static_cast<void>(hooks_.ensure(ns, *device));
}

std::expected<Watch, int> Splicer::connect(Namespace& ns, const DialOptions& options, const Address& server, std::uint32_t window,
                                           bool ahead, int socket, const SocketAddress& to) {
    const auto device = device_towards(ns, options, options.bound, server);
    Watch watch{.device = device.value_or(0), .refusal = {}};
    if (!device)
        watch.refusal = "no plain route to the server (or IPsec is in force)";
    else if (is_tracked(ns))
        watch.refusal = "the firewall tracks connections";
    else if (const auto attached = hooks_.ensure(ns, *device); !attached)
        watch.refusal = attached.error();
    mprox_dial dial{};
    dial.owner = {.slot = context_.slot, .generation = context_.generation};
    dial.window = window;
    dial.warm = ahead;
    dial.inward.netns = ns.cookie();
    if (watch.refusal.empty() && bpf_map_update_elem(programs_.dials(), &socket, &dial, BPF_ANY) != 0)
        watch.refusal = "no memory to watch the connection to the server";
    const std::uint64_t unwatched = programs_.context(context_.slot).unwatched;
    if (::connect(socket, &to.any, to.size) != 0 && errno != EINPROGRESS) return std::unexpected(errno);
    if (!watch.refusal.empty() || programs_.context(context_.slot).unwatched == unwatched) return watch;
    // Ours, or another shard's.
    if (bpf_map_lookup_elem(programs_.dials(), &socket, &dial) == 0 && dial.error) {
        if (dial.error == EEXIST) return std::unexpected(EADDRINUSE);
        watch.refusal = table_full;
    }
    return watch;
}

void Splicer::unwatch(int socket) const {
    mprox_dial dial{};
    if (bpf_map_lookup_elem(programs_.dials(), &socket, &dial) == 0 && !dial.error)
        bpf_map_delete_elem(programs_.splices(), &dial.inward);
}

// Reads the frozen socket and makes the two directions from it.
std::expected<TcpState, std::string> Splicer::prepare(const Flow& flow, const Dialled& dialled, const mprox_dial& dial, Spliced& to) {
    const auto& held = flow.held;
    const Watch& watch = dialled.watch;
    const Offer offer = read_offer(held);
    auto state = read_state(dialled.socket.get(), dial, dialled.socket.received());
    if (!state) return state;
    if (state->timestamps && !offer.timestamp) return std::unexpected("the server wants timestamps, the application has none");
    if (state->ecn && !(held.tcp_flags & 0x40)) return std::unexpected("the server uses ECN, the application does not");
    if (state->unread + dialled.early.size() > std::min<std::size_t>(handed_most, held.window))
        return std::unexpected("the server has sent much already");

    const std::uint32_t difference = state->send_next - (held.sequence + 1);
    to.entries.ifindex = watch.device;
    mprox_splice& out = to.entries.outward;
    mprox_splice& in = to.entries.inward;
    out.cookie = in.cookie = held.cookie;
    out.attempt = in.attempt = held.attempt;
    out.owner = in.owner = {.slot = context_.slot, .generation = context_.generation};
    out.way = watch.device == loopback ? MPROX_WAY_STAY : MPROX_WAY_OUT;
    in.way = watch.device == loopback ? MPROX_WAY_STAY : MPROX_WAY_IN;
    out.outward = 1;
    out.ifindex = watch.device;
    out.source = dial.inward.destination;
    out.source_port = dial.inward.destination_port;
    out.destination = dial.inward.source;
    out.destination_port = dial.inward.source_port;
    in.source = held.held;
    in.source_port = htons(held.held_port);
    in.destination = held.source;
    in.destination_port = htons(held.source_port);
    out.sequence = difference;
    in.acknowledgement = 0 - difference;
    if (state->timestamps) {
        const std::uint32_t server_clock = state->clock - milliseconds(state->time);
        const std::uint32_t application_clock = *offer.timestamp - milliseconds(held.time);
        out.timestamp = server_clock - application_clock + MPROX_CLOCK_SLACK;
        in.echo = 0 - out.timestamp;
    }
    if (state->scaling) {
        out.window_left = offer.scale.value_or(0);
        out.window_right = state->receive_scale;
        if (!offer.scale) in.window_left = state->send_scale;
    }
    out.next = held.sequence + 1;
    in.next = state->receive_next;
    in.acked = held.sequence + 1 + difference;
    to.sequence = state->receive_next - state->unread - static_cast<std::uint32_t>(dialled.early.size());
    out.acked = to.sequence;
    to.entries.outward_key = {.netns = flow.ns->cookie(),
                              .source = held.source,
                              .destination = held.held,
                              .source_port = htons(held.source_port),
                              .destination_port = htons(held.held_port),
                              .pad = 0};
    to.entries.inward_key = dial.inward;

    to.entries.seen = state->receive_next;
    to.syn_options = {};
    to.window = first_window(*state);
    const std::uint16_t mss = offered_mss(*state);
    to.syn_options.add(TCPOPT_MAXSEG, 4, mss >> 8, mss & 0xff);
    if (state->sack && offer.sack) to.syn_options.add(TCPOPT_NOP, TCPOPT_NOP, TCPOPT_SACK_PERMITTED, 2);
    if (state->scaling && offer.scale) to.syn_options.add(TCPOPT_NOP, TCPOPT_WINDOW, 3, state->send_scale);
    return state;
}

// The timestamp of the server's last packet.
void Splicer::stamp(Spliced& flow) {
    const Offer offer = read_offer(flow.held);
    for (Options* options : {&flow.syn_options, &flow.options})
        options->add_timestamps(flow.entries.inward.last_timestamp, *offer.timestamp);
}

asio::awaitable<std::expected<void, std::string>> Splicer::hand_over(Flow& flow, Dialled& dialled) {
    if (auto why = unsuited(flow.held, *flow.through)) co_return std::unexpected(std::move(*why));
    const Watch& watch = dialled.watch;
    if (!watch.refusal.empty()) co_return std::unexpected(watch.refusal);
    const Address source{.ip = flow.held.source, .port = 0};
    if (watch.device != loopback && source.is_ipv4() && !source.is_loopback())
        co_return std::unexpected("the application has bound its socket to an address");
    const int socket = dialled.socket.get();
    const auto spliced = std::make_shared<Spliced>();
    const auto failed = [](const char* what) { return std::unexpected(std::string(what) + ": " + std::strerror(errno)); };
    mprox_dial dial{};
    if (bpf_map_lookup_elem(programs_.dials(), &socket, &dial) != 0) co_return failed("cannot look at the socket");
    if (!freeze(socket, programs_.deaf())) co_return failed("cannot freeze the socket");
    const auto give_up = [&](std::string why) {
        thaw(socket);
        return std::unexpected(std::move(why));
    };
    auto state = prepare(flow, dialled, dial, *spliced);
    auto handed = MPROX_HANDED_BUSY;
    for (int tries = 0; state; tries++) {
        handed = programs_.hand_over(spliced->entries);
        if (handed != MPROX_HANDED_BUSY || tries == 3 || flow.dial.cancelled()) break;
        // What the filter has seen and the socket has not: it is on its way from the one to the other, and arrives in no
        // time; or the socket was deaf already, and it comes again.
        const std::uint32_t seen = spliced->entries.seen, received = state->receive_next;
        co_await sleep(poller_, 1ms);
        state = prepare(flow, dialled, dial, *spliced);
        if (state && state->receive_next == received) spliced->entries.seen = seen;
    }
    if (!state) co_return give_up(state.error());
    if (handed != MPROX_HANDED) co_return give_up(reason(handed));
    spliced->held = flow.held;
    spliced->ns = flow.ns;
    spliced->handed = dialled.early;
    if (state->unread > 0) {
        const std::size_t early = spliced->handed.size();
        spliced->handed.resize(early + state->unread);
        if (!peek(socket, std::span(spliced->handed).subspan(early))) {
            measure(*spliced, true);
            co_return give_up("what the server has sent cannot be read");
        }
    }
    if (state->timestamps) stamp(*spliced);

    // On lo a packet has arrived when send() returns, nearly always.
    auto& opened = programs_.context(context_.slot).opened[shard_];
    opened = 0;
    const auto is_open = [&] {
        if (opened == flow.held.cookie) return true;
        measure(*spliced);
        return (spliced->outward.seen & MPROX_OPENED) != 0;
    };
    send_segment(*flow.ns, flow.held, spliced->syn_ack());
    const bool at_once = opened == flow.held.cookie;
    for (auto pause = 1ms; !is_open(); pause *= 3) {
        if (pause > 500ms || flow.dial.cancelled()) {
            measure(*spliced, true);
            co_return give_up("the application's socket did not take the answer (firewall?)");
        }
        co_await sleep(poller_, pause);
        if (!is_open() && !flow.dial.cancelled()) send_segment(*flow.ns, flow.held, spliced->syn_ack());
    }
    spliced->server = std::move(dialled.socket);
    flows_[{flow.held.cookie, flow.held.attempt}] = spliced;
    if (!at_once) {
        // It has taken its time: the end of the application's socket may have come and gone, and the server's reset.
        measure(*spliced);
        if (spliced->inward.seen & MPROX_SEEN_RST)
            send_segment(*flow.ns, flow.held,
                         {.sequence = spliced->sequence, .acknowledgement = flow.held.sequence + 1, .flags = TH_RST | TH_ACK});
        if (!spliced->outward.ours || (spliced->outward.seen & MPROX_CLOSED))
            closed({flow.held.cookie, flow.held.attempt}, *spliced, static_cast<std::uint8_t>(spliced->outward.seen >> MPROX_STATE_SHIFT));
    }
    if (spliced->entries.outward.way == MPROX_WAY_OUT) follow_routes(flow.ns);
    if (!spliced->handed.empty()) {
        account_.down += spliced->handed.size();
        asio::co_spawn(poller_.handlers(), deliver(spliced), asio::detached);
    }
    co_return std::expected<void, std::string>{};
}

std::optional<mprox_ready> Splicer::describe(const Namespace& ns, const Greeted& greeted, bool ipv6, std::uint32_t window) const {
    const int socket = greeted.socket.get();
    mprox_dial dial{};
    if (!greeted.watch.refusal.empty() || bpf_map_lookup_elem(programs_.dials(), &socket, &dial) != 0) return {};
    // Has the server answered by the way that leads to it?
    mprox_splice watch{};
    const bool watched = bpf_map_lookup_elem(programs_.splices(), &dial.inward, &watch) == 0 && watch.way == MPROX_WAY_WATCH;
    if (!watched || watch.ifindex != greeted.watch.device) return {};
    const auto state = read_state(socket, dial, greeted.socket.received());
    if (!state || state->unread || !state->timestamps || !state->scaling || state->ecn) return {};
    mprox_ready ready{};
    ready.netns = ns.cookie();
    ready.inward_key = dial.inward;
    ready.device = greeted.watch.device;
    ready.send_next = state->send_next;
    ready.receive_next = state->receive_next;
    ready.clock = state->clock - milliseconds(state->time);
    ready.mss = offered_mss(*state);
    ready.own_mss = static_cast<std::uint16_t>(std::min<std::uint32_t>(state->own_mss, 0xffff));
    ready.window = first_window(*state);
    ready.rtt = state->rtt;
    ready.ipv6 = ipv6;
    ready.scale = static_cast<std::uint8_t>(std::countr_zero(window / 0xffff));
    ready.receive_scale = state->receive_scale;
    ready.send_scale = state->send_scale;
    ready.sack = state->sack;
    return ready;
}

std::optional<Watch> Splicer::carry_on(const mprox_ready& ready, Namespace& ns, int socket) {
    const mprox_dial dial = revived_dial(ready, {.slot = context_.slot, .generation = context_.generation});
    const auto now = std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch());
    const bool asked = ready.sent == ready.send_next + ready.request_size;
    if (asked && bpf_map_update_elem(programs_.dials(), &socket, &dial, BPF_ANY) == 0 &&
        revive(socket, ready, static_cast<std::uint64_t>(now.count())) && programs_.take_back(take_back_of(ready)))
        return Watch{.device = ready.device, .refusal = {}};
    silence(socket);
    drop(ready, ns);
    return {};
}

void Splicer::drop(const mprox_ready& ready, Namespace& ns) const {
    mprox_measure call{.outward_key = ready.outward_key,
                       .inward_key = ready.inward_key,
                       .cookie = ready.held.cookie,
                       .attempt = ready.held.attempt,
                       .remove = true,
                       .outward = {},
                       .inward = {}};
    programs_.measure(call);
    // One that has not answered yet will hear it from the kernel.
    if (ready.receive_next) reset_server(ns, ready.inward_key, ready.sent, ready.receive_next);
}

void Splicer::adopt(const mprox_ready& ready, std::shared_ptr<Namespace> ns, Descriptor server, Fd port) {
    if (server) silence(server.get());
    ports_ += static_cast<bool>(port);
    if (port && ready.outward.way == MPROX_WAY_OUT) unheld_.emplace_back(ready.held.cookie, ready.held.attempt);
    const auto spliced = std::make_shared<Spliced>();
    spliced->held = ready.held;
    spliced->ns = std::move(ns);
    spliced->server = std::move(server);
    spliced->port = std::move(port);
    spliced->entries.outward_key = ready.outward_key;
    spliced->entries.inward_key = ready.inward_key;
    spliced->entries.outward = ready.outward;
    spliced->entries.inward = ready.inward;
    flows_[{ready.held.cookie, ready.held.attempt}] = spliced;
    if (ready.outward.way != MPROX_WAY_OUT) return;
    follow_routes(spliced->ns);
    follow_route(*spliced);
}

void Splicer::hold_ports() {
    for (const Key& key : std::exchange(unheld_, {})) {
        const auto found = flows_.find(key);
        if (found == flows_.end() || found->second->is_closed) continue;
        const mprox_hand_over& entries = found->second->entries;
        const int socket = found->second->port.get();
        const mprox_dial dial = held_dial(entries.inward_key, entries.outward.owner);
        if (bpf_map_update_elem(programs_.dials(), &socket, &dial, BPF_ANY) == 0) hold_silently(socket, entries.inward_key);
    }
}

// Sends what had arrived before, until the application's socket has acknowledged it.
asio::awaitable<void> Splicer::deliver(std::shared_ptr<Spliced> flow) {
    const std::uint32_t end = flow->sequence + static_cast<std::uint32_t>(flow->handed.size());
    for (auto pause = 5ms; !flow->is_closed; pause = std::min(pause * 2, 1000ms)) {
        measure(*flow);
        if (!flow->outward.ours || static_cast<std::int32_t>(flow->outward.acked - end) >= 0) break;
        for (std::size_t at = flow->outward.acked - flow->sequence; at < flow->handed.size(); at += segment_most) {
            const std::size_t size = std::min(segment_most, flow->handed.size() - at);
            send_segment(*flow->ns, flow->held,
                         {.sequence = flow->sequence + static_cast<std::uint32_t>(at),
                          .acknowledgement = flow->held.sequence + 1,
                          .window = flow->window,
                          .flags = TH_ACK | TH_PUSH,
                          .options = flow->options.get(),
                          .payload = std::span(flow->handed).subspan(at, size)});
        }
        co_await sleep(poller_, pause);
    }
    flow->handed = {};
}

void Splicer::follow_routes(const std::shared_ptr<Namespace>& ns) {
    auto& followed = followed_[ns->cookie()];
    followed.flows++;
    if (!followed.routes)
        followed.routes = std::make_unique<RouteWatch>(poller_, *ns, [this, netns = ns->cookie()] { reroute(netns); });
}

// Where a route to a server has moved, its connections move along, as the kernel's own do. Where there is none any more
// they wait for one.
void Splicer::reroute(std::uint64_t netns) {
    devices_.clear();
    for (const auto& [key, flow] : flows_)
        if (flow->ns->cookie() == netns && flow->entries.outward.way == MPROX_WAY_OUT) follow_route(*flow);
}

void Splicer::follow_route(Spliced& flow) {
    mprox_splice& out = flow.entries.outward;
    const auto device = device_towards(*flow.ns, {.bound = {}, .device = flow.held.device, .mark = flow.held.mark},
                                       {.ip = out.source, .port = 0}, {.ip = out.destination, .port = 0});
    if (!device || *device == loopback || *device == out.ifindex || !hooks_.ensure(*flow.ns, *device)) return;
    out.ifindex = *device;
    programs_.reroute(flow.entries.outward_key, *device);
}

void Splicer::measure(Spliced& flow, bool remove) {
    mprox_measure call{.outward_key = flow.entries.outward_key,
                       .inward_key = flow.entries.inward_key,
                       .cookie = flow.held.cookie,
                       .attempt = flow.held.attempt,
                       .remove = remove,
                       .outward = flow.outward,
                       .inward = flow.inward};
    programs_.measure(call);
    flow.outward = call.outward;
    flow.inward = call.inward;
    account_.up += flow.outward.bytes - std::exchange(flow.up, flow.outward.bytes);
    account_.down += flow.inward.bytes - std::exchange(flow.down, flow.inward.bytes);
}

void Splicer::measure() {
    for (const auto& [key, flow] : flows_)
        if (!flow->rests) measure(*flow);
}

void Splicer::closed(const mprox_event& event) {
    const Key key{event.cookie, event.attempt};
    if (const auto found = flows_.find(key); found != flows_.end()) closed(key, *found->second, event.state);
}

void Splicer::closed(const Key& key, Spliced& flow, std::uint8_t state) {
    if (std::exchange(flow.is_closed, true)) return;
    flow.state = state;
    flow.closed_at = Clock::now();
    schedule(key, last_words);
}

void Splicer::find_closed() {
    for (const auto& [key, flow] : flows_) {
        if (flow->is_closed) continue;
        measure(*flow);
        if (!flow->outward.ours || (flow->outward.seen & MPROX_CLOSED))
            closed(key, *flow, static_cast<std::uint8_t>(flow->outward.seen >> MPROX_STATE_SHIFT));
    }
}

void Splicer::schedule(const Key& key, std::chrono::milliseconds after) {
    // Many end at the same time then, and wake us once.
    const auto when = endings_.emplace(std::chrono::ceil<Tick>(Clock::now() + after), key);
    if (when == endings_.begin()) wait();
}

void Splicer::wait() {
    if (!endings_.empty()) timer_.start(endings_.begin()->first, [this] { expire(); });
}

void Splicer::expire() {
    const auto now = Clock::now();
    while (!endings_.empty() && endings_.begin()->first <= now) {
        const Key key = endings_.begin()->second;
        endings_.erase(endings_.begin());
        const auto found = flows_.find(key);
        if (found == flows_.end()) continue;
        Spliced& flow = *found->second;
        if (flow.rests) {
            remove(key);
            continue;
        }
        measure(flow);
        const bool reset = (flow.inward.seen | flow.outward.seen) & MPROX_SEEN_RST;
        const bool waits = flow.state == fin_wait_1 || flow.state == fin_wait_2 || flow.state == closing;
        const bool finished = flow.inward.seen & MPROX_SEEN_FIN;
        // The state is told before the reset is sent, and its sender may be made to wait in between.
        if (!reset && !(flow.outward.seen & MPROX_SEEN_FIN) && now - flow.closed_at < last_words_limit) {
            schedule(key, last_words);
            continue;
        }
        const bool full = resting_ >= std::min(resting_most, descriptors_ / 16) || (flow.port && ports_ > resting_ports_most);
        if (!waits || reset || now - flow.closed_at > server_limit || (finished && full)) {
            remove(key);
        } else if (finished) {
            flow.rests = true;
            resting_++;
            schedule(key, time_wait);
        } else {
            schedule(key, server_pause);
        }
    }
    wait();
    changed_();
}

void Splicer::remove(const Key& key) {
    const auto found = flows_.find(key);
    measure(*found->second, true);
    if (found->second->rests) resting_--;
    ports_ -= static_cast<bool>(found->second->port);
    const auto ns = found->second->ns;
    const bool out = found->second->entries.outward.way == MPROX_WAY_OUT;
    flows_.erase(found);
    // A namespace is not to be kept by a socket that listens to its routes.
    if (const auto followed = followed_.find(ns->cookie()); out && followed != followed_.end())
        if (--followed->second.flows == 0 && !ns->is_own()) followed_.erase(followed);
}

void Splicer::forget_resting() {
    if (resting_ == 0) return;
    std::vector<Key> keys;
    for (const auto& [key, flow] : flows_)
        if (flow->rests) keys.push_back(key);
    for (const Key& key : keys) remove(key);
}

void Splicer::finish() {
    for (auto& [key, flow] : flows_) {
        measure(*flow, true);
        if (flow->is_closed) continue;
        // As when a relay ends: both sides are reset. Neither sequence number is quite certain; a peer that doubts asks, and
        // the kernel, which has no such connection, answers.
        send_segment(*flow->ns, flow->held,
                     {.sequence = flow->inward.next,
                      .acknowledgement = flow->inward.acked + flow->entries.inward.acknowledgement,
                      .window = 0,
                      .flags = TH_RST | TH_ACK,
                      .options = {},
                      .payload = {}});
        if (flow->port) {
            reset_server(*flow->ns, flow->entries.inward_key, flow->outward.next + flow->entries.outward.sequence, flow->inward.next);
        } else {
            thaw(flow->server.get());
            reset_on_close(flow->server.get());
        }
    }
    flows_.clear();
    unheld_.clear();
    endings_.clear();
    resting_ = ports_ = 0;
}

}  // namespace mprox
