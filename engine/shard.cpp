// SPDX-License-Identifier: MIT
#include "engine/shard.hpp"

#include <bpf/libbpf.h>
#include <fcntl.h>
#include <malloc.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <cerrno>
#include <cstring>
#include <thread>

#include "engine/answer.hpp"
#include "engine/repair.hpp"
#include "engine/tcp_options.hpp"

namespace mprox {

using namespace std::chrono_literals;

namespace {
constexpr std::size_t crowd = 512;  // dials at once
// A server that is as near as this (microseconds) is reached from a port, by three round trips, nearly as fast as by one over a
// connection that waits. To make those costs more than it saves when connects follow each other as closely as this.
constexpr std::uint32_t near = 1000;
constexpr auto hasty = 1ms;
constexpr auto pace_period = 50ms;
// When so many wait for us anyway, a server as near as that (microseconds) is reached as soon without.
constexpr std::size_t queue = 4;
constexpr std::uint32_t next_door = 200;
// After so many in a row that were relayed the next one will be, too.
constexpr unsigned relayed_least = 16;
// Ports that wait, and that connections have.
constexpr std::size_t ports_most = 40, ports_taken_most = 4096;
// What waits is looked at so often: does its way still lead to the server?
constexpr auto reconsider_period = 1s;
// How long the news of connections that come and go without us may wait.
constexpr auto look_period = 50ms;
// A connect() that the programs have asked for and got no answer to in such a time is for us: before its SYN is sent again (1 s).
constexpr auto unanswered_most = 700ms;

Address local_name(int socket) {
    SocketAddress name;
    return ::getsockname(socket, &name.any, &name.size) == 0 ? name.address() : Address{};
}
}

Shard::Shard(Shared& shared, std::uint32_t index)
    : shared_(shared),
      index_(index),
      relay_(poller_, Relay::Totals{.a_to_b = shared.account.up, .b_to_a = shared.account.down}),
      towards_applications_(poller_, shared.programs.spares(shared.context.slot, index)),
      towards_servers_(poller_),
      splicer_(poller_, shared.programs, shared.context, index, shared.account, shared.descriptors, [this] { update_active(); }),
      ready_(shared.programs, shared.context, index),
      ports_(ready_),
      warm_(poller_, ready_, [this](const Warm::Kind& kind, DialHandle& handle) { return greet_ahead(kind, handle); },
            [this](const Warm::Kind& kind, const Greeted& greeted) { return offer(kind, greeted); },
            [this](const Warm::Kind& kind) { return is_warm_needless(kind); },
            [this] { look_at_pool(); }),
      look_timer_(poller_),
      ring_(ring_buffer__new(
                shared.programs.ring(index),
                [](void* self, void* data, std::size_t) {
                    static_cast<Shard*>(self)->on_event(*static_cast<const mprox_event*>(data));
                    return 0;
                },
                this, nullptr),
            ring_buffer__free),
      // Level by level: the kernel's word that a ring is no longer empty can be lost, when we have just found it so.
      ring_ready_(poller_, Fd(::fcntl(shared.programs.ring(index), F_DUPFD_CLOEXEC, 0)), true) {
    if (!ring_ || !ring_ready_) throw std::system_error(errno, std::generic_category(), "cannot map a ring");
    poller_.before_wait([this] {
        set_awake(false);
        if (read_ring()) {
            set_awake(true);
            return 0;
        }
        // One that wakes nobody is on its way, and others may be behind it that did not, either, when we were awake.
        return shared_.programs.context(shared_.context.slot).quiet[index_] == heard_ ? -1 : 1;
    });
    poller_.after_wait([this] { set_awake(true); });
}

Shard::~Shard() = default;

void Shard::run() {
    // While the program starts; it will want the first server, from here.
    if (index_ == 0 && shared_.splice != Splice::never) splicer_.expect(*namespaces_.own(), shared_.policy.server(0).address);
    poller_.run();
    offers_ = false;
    warm_.withdraw();
    ports_.withdraw();
    for (std::uint32_t number = 0; number < Ready::most; number++) {
        while (ready_.state(number) == MPROX_READY_TAKEN) std::this_thread::yield();  // for less than a microsecond
        static_cast<void>(ready_.give_up(number));
    }
    look_at_pool();
    splicer_.finish();
}

// While we are awake the programs wake nobody. We look into the ring after we have said that we will sleep, and how far we have read
// it: whoever has put something in has seen that, or we see what it was.
void Shard::set_awake(bool awake) {
    shared_.programs.context(shared_.context.slot).awake[index_] = awake;
    std::atomic_thread_fence(std::memory_order_seq_cst);
}

// intercept. False: nothing has come.
bool Shard::read_ring() {
    if (ring_buffer__consume(ring_.get()) == 0) return false;
    look_around();
    return true;
}

void Shard::look_around() {
    shared_.programs.context(shared_.context.slot).heard[index_] = heard_;
    const std::uint64_t missed = shared_.programs.context(shared_.context.slot).missed[index_];
    look_at_pool();  // after that: what has opened and closed since is looked for among all
    if (std::exchange(missed_, missed) != missed) splicer_.find_closed();
    if (index_ == 0 && shared_.programs.context(shared_.context.slot).members == 0) shared_.changed();
}

// Has the ring read by itself for a while, or once more at least.
void Shard::look_soon(bool wanted) {
    shared_.programs.context(shared_.context.slot).looks[index_] = wanted;
    if (look_timer_.started()) return;
    look_timer_.start(look_period, [this] {
        const bool again = splicer_.ending() || ready_.used() > 0;
        const bool looked = shared_.programs.context(shared_.context.slot).looks[index_];
        ring_buffer__consume(ring_.get());
        look_around();
        if (again || looked) look_soon(again);
    });
}

void Shard::on_event(const mprox_event& event) {
    heard_ += event.quiet;
    // The count of members, and the states in the pool, say it as well.
    if (event.kind == MPROX_EVENT_EMPTY || event.kind == MPROX_EVENT_POOL) return;
    // It may be about a connection that a program has made.
    if (event.kind != MPROX_EVENT_HELD) look_at_pool();
    const auto found = held_.find(event.cookie);
    // One that we had given up, and that has opened in that very moment, ends like one that has not.
    const bool ours = found != held_.end() && found->second->held.attempt == event.attempt;
    if (event.kind == MPROX_EVENT_ENDED || (event.kind == MPROX_EVENT_CLOSED && ours)) {
        if (found == held_.end() || found->second->held.attempt != event.attempt) return;
        // Nobody waits for the dial any more: closed, interrupted, out of time, or our refusal has arrived.
        note_end(*found->second);
        found->second->dial.cancel();
        towards_applications_.offer(found->second->held_name());
        held_.erase(found);
        return update_active();
    }
    if (event.kind == MPROX_EVENT_CLOSED) {
        splicer_.closed(event);
        return look_soon(true);
    }
    reported_++;
    begin(std::make_shared<Flow>(event));
}

void Shard::begin(std::shared_ptr<Flow> flow) {
    // The socket's last attempt is over, whether we have been told or not.
    if (const auto found = held_.find(flow->held.cookie); found != held_.end()) {
        found->second->dial.cancel();
        held_.erase(found);
    }
    held_.emplace(flow->held.cookie, flow);
    crowd_ = std::max(crowd_, held_.size());
    update_active();
    asio::co_spawn(poller_.handlers(), serve(std::move(flow)), asio::detached);
}

// How the programs can ask by a connection, if they can. One server only: with several it is for us to choose, each time.
std::optional<mprox_ready> Shard::describe(const Warm::Kind& kind, const Greeted& greeted) {
    const Server& server = shared_.policy.server(kind.server);
    if (!offers_ || shared_.splice == Splice::never || shared_.policy.servers().size() > 1 || !greeted.said.empty() ||
        (server.uri.protocol != MPROTO_SOCKS5 && server.uri.protocol != MPROTO_SOCKS5H))
        return {};
    return splicer_.describe(*kind.ns, greeted, !server.address.is_ipv4(), kind.window);
}

std::optional<std::uint32_t> Shard::offer(const Warm::Kind& kind, const Greeted& greeted) {
    if (descriptors() > shared_.descriptors) return {};
    auto ready = describe(kind, greeted);
    if (!ready || !localize(kind, greeted, *ready)) return {};
    learn(kind, *ready);
    const auto number = ready_.offer(*ready);
    if (number) look_soon(true);
    return number;
}

// What getsockname() is to show. False when the programs cannot know.
bool Shard::localize(const Warm::Kind& kind, const Greeted& greeted, mprox_ready& ready) {
    const Address local = way_to(*kind.ns, shared_.policy.server(kind.server), greeted.socket.get()).local;
    if (local.is_loopback()) return kind.ns->cookie() == shared_.programs.context(shared_.context.slot).netns;
    ready.local = local.ip;
    return true;
}

// Others like this one could be made by the programs alone, unless the server wants more than a greeting.
void Shard::learn(const Warm::Kind& kind, const mprox_ready& ready) {
    if (shared_.policy.server(kind.server).uri.credentials.present || !kind.ns->is_own()) return;
    ports_.learn(kind.ns, ready);
    refill_ports();
    look_soon(true);
}

// What a connection from a port takes for itself, for the time of a TIME_WAIT as well, all others on this host must do without.
void Shard::refill_ports() {
    if (descriptors() > shared_.descriptors || splicer_.ports() >= ports_taken_most) return;
    ports_.refill(do_ports_suffice() ? ports_most : Ready::most - Warm::pool_most);
}

// Would connections that are made ahead cost more than they save?
bool Shard::is_warm_needless(const Warm::Kind& kind) const {
    if (shared_.splice != Splice::never) return kind.ns->is_own() && do_ports_suffice();
    const auto known = ways_.find({kind.ns->cookie(), &shared_.policy.server(kind.server)});
    return held_.size() >= queue && known != ways_.end() && known->second.rtt < next_door;
}

bool Shard::do_ports_suffice() const { return ports_.serve() && ports_.like()->rtt < near && hasty_; }

// Leaves the rest to the programs: the request, and the answer to the application.
bool Shard::lend(Flow& flow, Greeted& greeted) {
    const Server& server = shared_.policy.server(flow.asked);
    if (!flow.is_plain() || Splicer::unsuited(flow.held, server) || !has_usual_options(flow.held)) return false;
    const Warm::Kind kind{.ns = flow.ns, .server = flow.asked, .window = Splicer::window_clamp(flow.held)};
    const auto ready = describe(kind, greeted);
    if (!ready) return false;
    if (mprox_ready like = *ready; localize(kind, greeted, like)) learn(kind, like);
    set_local(flow, server, greeted.socket.get());
    // With a timestamp that is not older than that of the greeting, which the server has seen.
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    const mprox_event held = renewed(flow.held, static_cast<std::uint64_t>(std::chrono::nanoseconds(now).count()));
    const auto number = ready_.lend(*ready, held);
    if (!number) return false;
    warm_.lend(*number, kind, std::move(greeted), flow.since);
    repeat_syn(*flow.ns, held);
    look_soon(true);
    return flow.lent = true;
}

// What the programs have done meanwhile, and what they have left to do.
void Shard::look_at_pool() {
    if (shared_.splice == Splice::never) return;
    const auto now = std::chrono::steady_clock::now();
    if (now - paced_ > pace_period) {
        hasty_ = adopted_ * hasty > now - std::exchange(paced_, now);
        adopted_ = 0;
    }
    if (now - reconsidered_ > reconsider_period) {
        reconsidered_ = now;
        warm_.reconsider([this](const Warm::Kind& kind, const mprox_ready& ready) {
            return splicer_.leads_to(*kind.ns, shared_.policy.server(kind.server).address, ready.device);
        });
        ports_.look_after();
        splicer_.hold_ports();
        const auto* like = ports_.like();
        if (like && !splicer_.leads_to(*namespaces_.own(), shared_.policy.server(0).address, like->device)) ports_.withdraw();
    }
    for (std::uint32_t number = 0; number < Ready::most; number++) {
        const auto state = ready_.state(number);
        if (state != MPROX_READY_ANSWERED) answered_[number].reset();
        switch (state) {
            case MPROX_READY_ANSWERED:
                if (!answered_[number]) answered_[number] = now;
                if (now - *answered_[number] < unanswered_most || !ready_.give_up(number)) break;
                // It does not reach the application, nor will others, or not in time.
                offers_ = false;
                warm_.withdraw();
                ports_.withdraw();
                carry_on(number);
                break;
            case MPROX_READY_DIALLED:
                if (now - time_of(ready_.at(number).held) < unanswered_most || !ready_.give_up(number, MPROX_READY_DIALLED)) break;
                carry_on(number);
                break;
            case MPROX_READY_ASKED:
                // From a port there is no better way to ask, and what gets lost the application's kernel asks again.
                if (ready_.at(number).port) break;
                if (now - time_of(ready_.at(number).held) >= unanswered_most && ready_.give_up(number)) carry_on(number);
                break;
            case MPROX_READY_OPEN:
                adopt(number);
                break;
            case MPROX_READY_GONE:
            case MPROX_READY_STUCK:
                carry_on(number);
                break;
            case MPROX_READY_BROKEN:
                static_cast<void>(warm_.release(number));
                static_cast<void>(ports_.release(number));
                ready_.free(number);
                update_active();
                break;
            default:
                break;
        }
    }
    refill_ports();
    warm_.refill();
}

// A connect() that was answered without us.
void Shard::adopt(std::uint32_t number) {
    const mprox_ready& ready = ready_.at(number);
    auto port = ports_.release(number);
    auto taken = warm_.release(number);
    if (port || taken) {
        adopted_++;
        reported_ += port || !taken->since;
        if (port) ports_.confirm();
        if (port && shared_.warm)
            warm_.miss({.ns = namespaces_.own(), .server = 0, .window = Splicer::window_clamp(ready.held)});
        const std::size_t index = taken ? taken->kind.server : 0;
        if (port)
            splicer_.adopt(ready, namespaces_.own(), {}, std::move(*port));
        else
            splicer_.adopt(ready, taken->kind.ns, std::move(taken->greeted.socket), {});
        relayed_ = 0;
        shared_.policy.answered(index);
        shared_.account.connections++;
        shared_.account.spliced();
        if (spdlog::should_log(spdlog::level::info))
            spdlog::info("{} connected through {}, spliced", Flow(ready.held).destination().text(),
                         shared_.policy.server(index).text);
    }
    update_active();  // before: others may ask whether there is anything left
    ready_.free(number);
}

// One that was not.
void Shard::carry_on(std::uint32_t number) {
    if (ready_.at(number).port) return carry_on_from_port(number);
    const auto flow = std::make_shared<Flow>(ready_.at(number).held);
    const mprox_ready& ready = ready_.at(number);
    const bool gone = ready_.state(number) == MPROX_READY_GONE;
    auto taken = warm_.release(number);
    reported_ += taken && !taken->since;
    if (taken && taken->since) flow->since = *taken->since;
    if (ready_.take_back(number) && taken) {
        taken->greeted.said.assign(ready.reply, ready.reply + ready.reply_size);
        if (gone) {
            // The server is to see an end, and not packets that mean nothing to it.
            static_cast<void>(taken->greeted.socket.send(std::span(ready.request).first(ready.request_size)));
        } else {
            // Until it has said what the server has heard already, a FIN of it would be in the wrong place.
            reset_on_close(taken->greeted.socket.get());
            flow->begun = std::move(taken->greeted);
        }
    }
    if (gone && taken) {
        flow->server = &shared_.policy.server(taken->kind.server);
        flow->asked_since = flow->since;
        note_end(*flow);
    }
    if (!gone) begin(flow);
    ready_.free(number);
    if (gone) update_active();
}

// Nobody but the programs knows that connection: a socket of ours becomes its end. Before it has been asked by, we begin anew.
void Shard::carry_on_from_port(std::uint32_t number) {
    const mprox_ready ready = ready_.at(number);
    const Server& server = shared_.policy.server(0);
    const auto flow = std::make_shared<Flow>(ready.held);
    const bool gone = ready_.state(number) == MPROX_READY_GONE;
    auto port = ports_.release(number);
    ready_.free(number);
    if (!port) return;
    flow->ns = namespaces_.own();
    reported_++;
    if (gone) {
        splicer_.drop(ready, *flow->ns);
        flow->server = &server;
        flow->asked_since = flow->since;
        note_end(*flow);
        return update_active();
    }
    if (auto watch = splicer_.carry_on(ready, *flow->ns, port->get())) {
        reset_on_close(port->get());
        Descriptor socket(poller_, std::move(*port));
        if (socket)
            flow->begun = Greeted{.socket = std::move(socket),
                                  .watch = std::move(*watch),
                                  .client = greeted_client(server),
                                  .said = {ready.reply, ready.reply + ready.reply_size},
                                  .waited = true};
    } else {
        ports_.unlearn();
    }
    begin(flow);
}

// A dial that the kernel ended, and not we.
void Shard::note_end(const Flow& flow) {
    if (flow.refusal || !flow.server) return;
    const auto now = Policy::Clock::now();
    // An application that waits for less long than we do must not meet the same silent server each time: its next
    // connect() may be the next event already.
    const bool silent = !flow.dial.heard() && now - flow.asked_since > 1s;
    if (silent && shared_.policy.servers().size() > 1) shared_.policy.failed(flow.asked, now);
    const std::string destination = flow.destination().text();
    if (now - flow.since < shared_.timeout)
        return spdlog::info("{} given up by the application while {} was asked", destination, flow.server->text);
    const std::string why = "no answer by " + flow.server->text;
    shared_.account.refused(why);
    spdlog::info("{} refused ({}): {}", destination, std::strerror(ETIMEDOUT), why);
}

// policy, then dial, until a server has a word on the destination
asio::awaitable<void> Shard::serve(std::shared_ptr<Flow> flow) {
    if (flow->dial.cancelled()) co_return;  // before its turn came
    const Address destination = flow->destination();
    flow->ns = namespaces_.find(flow->held.netns, flow->held.tgid);
    if (!flow->ns)
        co_return refuse_flow(flow, ENETUNREACH, "the socket's network namespace has no process left in it");
    if (descriptors() > shared_.descriptors / 2) {
        splicer_.forget_resting();
        towards_applications_.clear();
        towards_servers_.clear();
    }
    if (descriptors() > shared_.descriptors) {
        const auto now = std::chrono::steady_clock::now();
        if (now - limit_told_ > 1s) {
            limit_told_ = now;
            spdlog::warn("{} refused: {} descriptors in use are as many as the open-file limit (RLIMIT_NOFILE) allows",
                         destination.text(), shared_.descriptors);
        }
        co_return refuse_flow(flow, ENETUNREACH, "too many connections for the open-file limit");
    }

    const auto order = shared_.policy.order(Policy::Clock::now());
    DialRefusal last{.error = ENETUNREACH, .text = "no server"};
    std::string last_text;
    for (std::size_t i = 0; i < order.size(); i++) {
        const Server& server = shared_.policy.server(order[i]);
        flow->server = &server;
        // The last one may take all the time that the application's connect() has.
        const auto share = shared_.timeout / static_cast<int>(order.size());
        const auto limit = i + 1 < order.size() ? share : 0ms;
        flow->asked = order[i];
        flow->asked_since = Policy::Clock::now();
        auto dialled = co_await reach(*flow, server, limit);
        if (flow->dial.cancelled()) co_return;
        if (flow->lent) {
            if (const auto kind = kind_of(*flow)) warm_.replenish(*kind);
            co_return forget(*flow);
        }
        if (dialled) {
            shared_.policy.answered(order[i]);
            flow->server = nullptr;
            flow->through = &server;
            if (!co_await answer(*flow, std::move(*dialled)))
                co_return refuse_flow(flow, ENETUNREACH, "the answer could not be given");
            if (const auto kind = kind_of(*flow)) warm_.replenish(*kind);
            co_return forget(*flow);
        }
        last = std::move(dialled.error());
        last_text = last.text + " by " + server.text;
        if (last.fault == Fault::destination) shared_.policy.answered(order[i]);
        if (last.fault == Fault::server) shared_.policy.failed(order[i], Policy::Clock::now());
        if (last.fault == Fault::destination || last.fault == Fault::ours) break;
        if (i + 1 < order.size()) spdlog::info("{} not through {}: {}", destination.text(), server.text, last.text);
        last_text = server.text + ": " + last.text;
    }
    refuse_flow(flow, last.error, last_text);
}

// Connections of flows with wishes of their own are not made ahead.
std::optional<Warm::Kind> Shard::kind_of(const Flow& flow) const {
    if (!flow.is_plain()) return {};
    return Warm::Kind{.ns = flow.ns, .server = flow.asked, .window = shared_.splice != Splice::never ? Splicer::window_clamp(flow.held) : 0};
}

DialOptions Shard::watched(DialOptions options, Namespace& ns, const Server& server, std::uint32_t window, bool ahead) {
    options.connect = [this, &ns, &server, plain = options, window, ahead](int socket, const SocketAddress& to) {
        return splicer_.connect(ns, plain, server.address, window, ahead, socket, to);
    };
    return options;
}

asio::awaitable<std::expected<Greeted, DialRefusal>> Shard::greet_ahead(const Warm::Kind& kind, DialHandle& handle) {
    if (descriptors() > shared_.descriptors) co_return std::unexpected(DialRefusal{.fault = Fault::ours, .error = EMFILE, .text = "no room"});
    const Server& server = shared_.policy.server(kind.server);
    DialOptions options{};
    if (shared_.splice != Splice::never) options = watched(options, *kind.ns, server, kind.window, true);
    auto greeted = co_await greet(poller_, *kind.ns, server, options, handle, first_word, spare_towards(server, *kind.ns, options));
    if (!greeted && !handle.cancelled() && greeted.error().fault == Fault::server)
        shared_.policy.failed(kind.server, Policy::Clock::now());
    co_return std::move(greeted);
}

// By a connection that was made ahead, or by one of its own. An error and flow.lent: the programs do the rest.
asio::awaitable<std::expected<Dialled, DialRefusal>> Shard::reach(Flow& flow, const Server& server,
                                                                  std::chrono::milliseconds limit) {
    const mproto_endpoint endpoint = flow.destination().endpoint();
    const auto kind = kind_of(flow);
    const bool begun = flow.begun.has_value();
    auto greeted = std::exchange(flow.begun, {});
    if (kind && !begun && shared_.warm) greeted = warm_.take(*kind, flow.dial);
    if (kind && greeted && greeted->waited) {
        if (begun) warm_.watch(flow.dial);
        if (!begun && lend(flow, *greeted)) {
            warm_.settle(*kind, flow.dial, false);
            co_return std::unexpected(DialRefusal{});
        }
        auto dialled = co_await ask(poller_, std::move(*greeted), endpoint, flow.dial, limit);
        const bool lost = !dialled && dialled.error().unheard && !flow.dial.cancelled();
        warm_.settle(*kind, flow.dial, lost);
        if (!lost) co_return std::move(dialled);
        greeted.reset();
    }
    const auto since = std::chrono::steady_clock::now();
    if (!greeted) {
        if (auto why = cannot_carry(server, endpoint)) co_return std::unexpected(std::move(*why));
        DialOptions options = flow.options();
        const bool splicing = shared_.splice != Splice::never && !Splicer::unsuited(flow.held, server);
        if (splicing) options = watched(options, *flow.ns, server, Splicer::window_clamp(flow.held), flow.is_plain());
        auto fresh = co_await greet(poller_, *flow.ns, server, options, flow.dial, limit, spare_towards(server, *flow.ns, options));
        if (!fresh) co_return std::unexpected(std::move(fresh.error()));
        if (splicing && !flow.dial.cancelled() && lend(flow, *fresh)) co_return std::unexpected(DialRefusal{});
        greeted = std::move(*fresh);
    }
    if (limit.count() > 0) {
        const auto used = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - since);
        limit = std::max(limit - used, 1ms);
    }
    co_return co_await ask(poller_, std::move(*greeted), endpoint, flow.dial, limit);
}

// What a connection to the server says of the way there. That of two in a row is the same, unless they have wishes of their own.
const Shard::Way& Shard::way_to(const Namespace& ns, const Server& server, int server_socket) {
    const auto now = std::chrono::steady_clock::now();
    if (ways_.size() > 1000) ways_.clear();
    Way& known = ways_[{ns.cookie(), &server}];
    if (known.until <= now) known = {.local = local_name(server_socket), .rtt = least_round_trip(server_socket), .until = now + 1s};
    return known;
}

// The name getsockname() shows: where a direct connection would have come from.
void Shard::set_local(const Flow& flow, const Server& server, int server_socket) {
    if (Address(flow.held.bound).is_unset() == false) return;
    const auto& context = shared_.programs.context(shared_.context.slot);
    Address local = flow.held.device || flow.held.mark ? local_name(server_socket) : way_to(*flow.ns, server, server_socket).local;
    const bool ipv4 = flow.destination().is_ipv4();
    // A server on this host, or of the other family, says nothing of it: ask the routing table.
    if (local.is_loopback() || local.is_ipv4() != ipv4) {
        if (flow.held.netns == context.netns) return;
        local = flow.ns->source_towards(flow.destination());
        if (local.is_unset()) return;
    }
    const volatile mprox_ip& usual = ipv4 ? context.local4 : context.local6;
    if (flow.held.netns == context.netns && usual.half[0] == local.ip.half[0] && usual.half[1] == local.ip.half[1]) return;
    shared_.programs.set_local(flow.held.cookie, local.ip);
}

// Out of the path, or relay. False when neither can be.
asio::awaitable<bool> Shard::answer(Flow& flow, Dialled dialled) {
    set_local(flow, *flow.through, dialled.socket.get());
    const auto told = [&](const std::string& how) {
        shared_.account.connections++;
        if (spdlog::should_log(spdlog::level::info))
            spdlog::info("{} connected through {}{}", flow.destination().text(), flow.through->text, how);
    };
    std::string how;
    if (shared_.splice != Splice::never) {
        const auto spliced = co_await splicer_.hand_over(flow, dialled);
        if (spliced) {
            relayed_ = 0;
            shared_.account.spliced();
            told(", spliced");
            co_return true;
        }
        if (dialled.watch.refusal.empty()) splicer_.unwatch(dialled.socket.get());
        if (flow.dial.cancelled()) co_return true;
        if (shared_.account.relayed(spliced.error()) && shared_.splice == Splice::always)
            spdlog::warn("{} is relayed: {}", flow.destination().text(), spliced.error());
        how = ", relayed: " + spliced.error();
        send_without_delay(dialled.socket.get());  // it may not have been acknowledged all of the handshake, which may be why
    }
    relayed_++;
    if (!co_await relay(flow, std::move(dialled))) co_return false;
    told(how);
    co_return true;
}

// relay
asio::awaitable<bool> Shard::relay(Flow& flow, Dialled dialled) {
    Descriptor application;
    if (flow.ns->is_own()) application = towards_applications_.take(flow.held_name());
    if (application && !connect_towards(application.get(), flow.held)) application.close();
    if (!application) {
        Fd opened = open_towards(*flow.ns, flow.held);
        if (!opened) {
            spdlog::warn("{}: cannot answer the application: {}", flow.destination().text(), std::strerror(errno));
            co_return false;
        }
        application = Descriptor(poller_, std::move(opened));
        if (!application) co_return false;
    }
    // Until the SYNs have crossed: what ends before that ends without a word. What is reset later may have sent before.
    const bool crossed = co_await application.wait(Descriptor::writing);
    if (!crossed || (application.is(EPOLLERR) && !was_established(application.get()))) co_return false;
    if (!dialled.early.empty() && !application.is(EPOLLERR)) {
        // A fresh socket has room for them.
        std::size_t sent = 0;
        send_without_delay(application.get());
        while (sent < dialled.early.size()) {
            const ssize_t n = application.send(std::span(dialled.early).subspan(sent));
            if (n > 0) {
                sent += static_cast<std::size_t>(n);
                continue;
            }
            if (errno != EAGAIN) break;
            const bool room = co_await application.wait(Descriptor::writing);
            if (!room) co_return false;
        }
        shared_.account.down += sent;
    }
    relay_.join(std::move(application), std::move(dialled.socket), [this](const RelayEnd&) { update_active(); }, reuse_of(flow));
    co_return true;
}

// Its sockets may serve others, if these are relayed as well.
Relay::Reuse Shard::reuse_of(const Flow& flow) {
    if (!flow.ns->is_own() || (shared_.splice != Splice::never && relayed_ < relayed_least)) return nullptr;
    // One that was watched, or has wishes, is not like a new one.
    const bool both = shared_.splice == Splice::never && flow.is_plain();
    return [this, name = flow.held_name(), server = both ? flow.through : nullptr](Descriptor application, Descriptor socket) {
        if (application) towards_applications_.keep(name, std::move(application));
        if (socket && server) towards_servers_.keep(server->address, std::move(socket));
    };
}

Descriptor Shard::spare_towards(const Server& server, const Namespace& ns, const DialOptions& options) {
    return options.is_plain() && !options.connect && ns.is_own() ? towards_servers_.take(server.address) : Descriptor();
}

void Shard::refuse_flow(const std::shared_ptr<Flow>& flow, int error, const std::string& why) {
    if (flow->dial.cancelled()) return;
    shared_.account.refused(why);
    spdlog::info("{} refused ({}): {}", flow->destination().text(), std::strerror(error), why);
    flow->refusal = error;
    if (!flow->ns) flow->ns = namespaces_.own();
    if (error != ETIMEDOUT) repeat_refusal(flow, 1ms);
}

void Shard::repeat_refusal(const std::shared_ptr<Flow>& flow, std::chrono::milliseconds after) {
    refuse(*flow->ns, flow->held, flow->refusal);
    auto timer = std::make_shared<Timer>(poller_);
    timer->start(after, [this, flow, timer, after] {
        const auto found = held_.find(flow->held.cookie);
        if (found == held_.end() || found->second != flow) return;
        if (after > shared_.timeout) {  // gone without a word: the event found no room
            held_.erase(found);
            return update_active();
        }
        repeat_refusal(flow, after * 2);
    });
}

void Shard::forget(const Flow& flow) {
    const auto found = held_.find(flow.held.cookie);
    if (found != held_.end() && found->second.get() == &flow) held_.erase(found);
    update_active();
    if (!held_.empty()) return;
    // Dials take more memory than the connections that come of them, and the allocator keeps what a crowd of them took.
    if (std::exchange(crowd_, 0) > crowd) ::malloc_trim(0);
}

// A connection takes one to its server, and unless it is spliced one to the application.
std::size_t Shard::descriptors() const {
    return 2 * (held_.size() + relay_.active()) + towards_applications_.size() + towards_servers_.size() + splicer_.active() +
           warm_.waiting() + ports_.waiting() + ready_.busy();
}

void Shard::update_active() {
    const std::size_t active = held_.size() + relay_.active() + splicer_.active();
    active_ = active;
    // What is not done takes two descriptors each, for those who choose a shard.
    shared_.programs.context(shared_.context.slot).done[index_] = reported_ - descriptors() / 2;
    if (active == 0 && ready_.busy() == 0 && shared_.programs.context(shared_.context.slot).members == 0) shared_.changed();
}

}  // namespace mprox
