// SPDX-License-Identifier: MIT
#include "engine/programs.hpp"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <fstream>
#include <memory>

#include "bpf/intercept.skel.h"
#include "engine/address.hpp"
#include "engine/hooks.hpp"

namespace mprox {
namespace {

constexpr std::size_t contexts_bytes = (sizeof(mprox_context) * MPROX_SLOTS + 4095) / 4096 * 4096;
static_assert(sizeof(mprox_context) % 8 == 0, "the kernel pads array elements to 8 bytes");

std::string failed(const std::string& what, int error = errno) { return what + ": " + std::strerror(error); }

std::uint32_t read_limit(const char* path, std::uint32_t otherwise) {
    std::uint64_t value = 0;
    std::ifstream(path) >> value;
    return value ? static_cast<std::uint32_t>(std::min<std::uint64_t>(value, 1u << 22)) : otherwise;
}

// The root of cgroup v2 as this process may see it; needs no mount, so `ip netns exec` does not hide it.
std::expected<Fd, std::string> cgroup_root() {
    const Fd context(::fsopen("cgroup2", FSOPEN_CLOEXEC));
    if (!context || ::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0)
        return std::unexpected(failed("cannot open cgroup v2"));
    Fd root(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
    if (!root) return std::unexpected(failed("cannot open cgroup v2"));
    return root;
}

// Different programs, or another root to attach them to, must not be mistaken for ours.
std::string set_name(const Fd& root) {
    std::size_t size = 0;
    const auto* bytes = static_cast<const unsigned char*>(mprox_bpf__elf_bytes(&size));
    std::uint64_t hash = 14695981039346656037u;  // FNV-1a
    for (std::size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    struct stat status {};
    ::fstat(root.get(), &status);
    return fmt::format("{:016x}-{}", hash, status.st_ino);
}

void remove_tree(const std::string& path) {
    if (DIR* directory = ::opendir(path.c_str())) {
        while (const dirent* entry = ::readdir(directory))
            if (entry->d_name[0] != '.') ::unlink((path + "/" + entry->d_name).c_str());
        ::closedir(directory);
    }
    ::rmdir(path.c_str());
}

// What ends so is on its way in or out, and may be removed by whoever holds the lock.
constexpr const char* unfinished = "-new";

// Whatever goes wrong while they are made, no half-attached programs remain.
struct Unfinished {
    std::string path;
    ~Unfinished() { remove_tree(path); }
};

void* map_contexts(const Fd& map) {
    return ::mmap(nullptr, contexts_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, map.get(), 0);
}

bool in_use(const volatile mprox_context& context) {
    return context.generation && (context.alive || context.members);
}

// Is this the set of another build, whose engines and members are gone? When in doubt, no.
bool is_abandoned(const std::string& directory) {
    const Fd map(bpf_obj_get((directory + "/contexts").c_str()));
    bpf_map_info info{};
    __u32 size = sizeof info;
    if (!map || bpf_obj_get_info_by_fd(map.get(), &info, &size) != 0 || info.value_size != sizeof(mprox_context) ||
        info.max_entries != MPROX_SLOTS)
        return false;
    void* memory = map_contexts(map);
    if (memory == MAP_FAILED) return false;
    const auto* contexts = static_cast<const volatile mprox_context*>(memory);
    const bool used = std::any_of(contexts, contexts + MPROX_SLOTS, in_use);
    ::munmap(memory, contexts_bytes);
    return !used;
}

std::vector<std::string> directories_in(const std::string& path) {
    std::vector<std::string> names;
    if (DIR* directory = ::opendir(path.c_str())) {
        while (const dirent* entry = ::readdir(directory))
            if (entry->d_name[0] != '.' && entry->d_type == DT_DIR) names.push_back(path + "/" + entry->d_name);
        ::closedir(directory);
    }
    return names;
}

// libbpf explains itself on stderr; what matters reaches the user as one sentence instead.
void silence_libbpf() {
    libbpf_set_print([](enum libbpf_print_level, const char*, va_list) { return 0; });
}

// What the program returns; it may write into its argument. Negative: it did not run.
template <typename Call>
int run(const Fd& program, Call& call) {
    LIBBPF_OPTS(bpf_test_run_opts, options, .ctx_in = &call, .ctx_size_in = sizeof call);
    return bpf_prog_test_run_opts(program.get(), &options) == 0 ? static_cast<int>(options.retval) : -1;
}

}  // namespace

Programs::Programs(Programs&& other) noexcept
    : directory_(std::move(other.directory_)),
      contexts_map_(std::move(other.contexts_map_)),
      rings_map_(std::move(other.rings_map_)),
      pools_map_(std::move(other.pools_map_)),
      bypass_map_(std::move(other.bypass_map_)),
      locals_map_(std::move(other.locals_map_)),
      splices_map_(std::move(other.splices_map_)),
      dials_map_(std::move(other.dials_map_)),
      hooks_map_(std::move(other.hooks_map_)),
      hook_users_map_(std::move(other.hook_users_map_)),
      deaf_(std::move(other.deaf_)),
      join_(std::move(other.join_)),
      serve_(std::move(other.serve_)),
      hand_over_(std::move(other.hand_over_)),
      ask_(std::move(other.ask_)),
      take_back_(std::move(other.take_back_)),
      measure_(std::move(other.measure_)),
      reroute_(std::move(other.reroute_)),
      links_(std::move(other.links_)),
      rings_(std::move(other.rings_)),
      own_pools_(std::move(other.own_pools_)),
      contexts_(std::exchange(other.contexts_, nullptr)) {}

Programs::~Programs() {
    if (contexts_) ::munmap(const_cast<mprox_context*>(contexts_), contexts_bytes);
}

std::expected<Programs, std::string> Programs::open(RunDir& dir) {
    silence_libbpf();
    const auto root = cgroup_root();
    if (!root) return std::unexpected(root.error());
    const auto bpf = dir.bpf();
    if (!bpf) return std::unexpected(bpf.error());
    const std::string directory = *bpf + "/" + set_name(*root);
    Programs programs;
    if (::access(directory.c_str(), F_OK) != 0)
        if (auto loaded = programs.load(directory); !loaded) {
            dir.tidy();
            return std::unexpected(loaded.error());
        }
    if (auto found = programs.find(directory); !found) return std::unexpected(found.error());
    return programs;
}

std::expected<void, std::string> Programs::load(const std::string& directory) {
    const auto root = cgroup_root();
    if (!root) return std::unexpected(root.error());
    const std::unique_ptr<mprox_bpf, void (*)(mprox_bpf*)> bpf(mprox_bpf__open(), mprox_bpf__destroy);
    if (!bpf) return std::unexpected(failed("cannot read the BPF programs"));
    // One entry per process that can exist: then no member's child ever finds the table full.
    bpf_map__set_max_entries(bpf->maps.members, std::max(65536u, std::min(read_limit("/proc/sys/kernel/pid_max", 65536),
                                                                          read_limit("/proc/sys/kernel/threads-max", 65536))));
    if (const int error = mprox_bpf__load(bpf.get()))
        return std::unexpected(failed("the kernel refused the BPF programs (see `mprox doctor`)", -error));

    // Attached under a temporary name first: a directory with the right name is complete.
    const std::string making = directory + unfinished;
    const Unfinished rest{making};
    remove_tree(making);
    if (::mkdir(making.c_str(), 0700) != 0) return std::unexpected(failed("cannot make " + making));
    const auto pin = [&](int fd, const char* name) { return bpf_obj_pin(fd, (making + "/" + name).c_str()) == 0; };
    std::vector<std::unique_ptr<bpf_link, int (*)(bpf_link*)>> links;
    bpf_program* program = nullptr;
    bpf_object__for_each_program(program, bpf->obj) {
        const char* name = bpf_program__name(program);
        const auto type = bpf_program__type(program);
        if (type == BPF_PROG_TYPE_SYSCALL || type == BPF_PROG_TYPE_SOCKET_FILTER) {
            if (!pin(bpf_program__fd(program), name)) return std::unexpected(failed(std::string("cannot pin ") + name));
            continue;
        }
        bpf_link* link = type == BPF_PROG_TYPE_TRACING
                             ? bpf_program__attach(program)
                             : bpf_program__attach_cgroup(program, root->get());
        if (!link) {
            const int error = errno;
            return std::unexpected(failed(std::string("cannot attach ") + name, error));
        }
        links.emplace_back(link, bpf_link__destroy);
        if (!pin(bpf_link__fd(link), (std::string("link_") + name).c_str()))
            return std::unexpected(failed(std::string("cannot pin ") + name));
    }
    const std::array maps{bpf->maps.contexts, bpf->maps.rings, bpf->maps.pools, bpf->maps.bypass,    bpf->maps.locals,
                          bpf->maps.splices,  bpf->maps.dials, bpf->maps.hooks, bpf->maps.hook_users};
    for (const bpf_map* map : maps)
        if (!pin(bpf_map__fd(map), bpf_map__name(map)))
            return std::unexpected(failed(std::string("cannot pin ") + bpf_map__name(map)));
    if (::rename(making.c_str(), directory.c_str()) != 0) return std::unexpected(failed("cannot name " + directory));
    return {};
}

std::expected<void, std::string> Programs::find(const std::string& directory) {
    directory_ = directory;
    const auto get = [&](const char* name) { return Fd(bpf_obj_get((directory + "/" + name).c_str())); };
    contexts_map_ = get("contexts");
    rings_map_ = get("rings");
    pools_map_ = get("pools");
    bypass_map_ = get("bypass");
    locals_map_ = get("locals");
    splices_map_ = get("splices");
    dials_map_ = get("dials");
    hooks_map_ = get("hooks");
    hook_users_map_ = get("hook_users");
    deaf_ = get("mprox_deaf");
    join_ = get("mprox_join");
    serve_ = get("mprox_serve");
    hand_over_ = get("mprox_hand_over");
    ask_ = get("mprox_ask");
    take_back_ = get("mprox_take_back");
    measure_ = get("mprox_measure");
    reroute_ = get("mprox_reroute");
    if (!contexts_map_ || !rings_map_ || !pools_map_ || !bypass_map_ || !locals_map_ || !splices_map_ || !dials_map_ || !hooks_map_ ||
        !hook_users_map_ || !deaf_ || !join_ || !serve_ || !hand_over_ || !ask_ || !take_back_ || !measure_ || !reroute_)
        return std::unexpected(failed("cannot open the pins in " + directory));
    if (DIR* entries = ::opendir(directory.c_str())) {
        while (const dirent* entry = ::readdir(entries))
            if (std::strncmp(entry->d_name, "link_", 5) == 0) links_.push_back(get(entry->d_name));
        ::closedir(entries);
    }
    void* memory = map_contexts(contexts_map_);
    if (memory == MAP_FAILED) return std::unexpected(failed("cannot map the contexts"));
    contexts_ = static_cast<volatile mprox_context*>(memory);
    return {};
}

std::expected<mprox_call, std::string> Programs::create(RunDir& dir, const ContextSettings& settings) {
    for (std::uint32_t slot = 0; slot < MPROX_SLOTS; slot++)
        if (contexts_[slot].generation && !contexts_[slot].alive && !contexts_[slot].members) destroy(dir, slot);
    std::uint32_t slot = 0;
    while (slot < MPROX_SLOTS && contexts_[slot].generation) slot++;
    if (slot == MPROX_SLOTS)
        return std::unexpected(fmt::format("all {} proxy contexts of this machine are in use", MPROX_SLOTS));

    purge(slot);
    for (std::uint32_t shard = 0; shard < settings.shards; shard++) {
        rings_[shard] = Fd(bpf_map_create(BPF_MAP_TYPE_RINGBUF, "mprox_ring", 0, 0, MPROX_RING_BYTES, nullptr));
        const std::uint32_t index = slot * MPROX_SHARDS + shard;
        const int ring = rings_[shard].get();
        if (ring < 0 || bpf_map_update_elem(rings_map_.get(), &index, &ring, BPF_ANY) != 0)
            return std::unexpected(failed("cannot make a ring"));
        LIBBPF_OPTS(bpf_map_create_opts, mappable, .map_flags = BPF_F_MMAPABLE);
        own_pools_[shard] = Fd(bpf_map_create(BPF_MAP_TYPE_ARRAY, "mprox_pool", sizeof(__u32), sizeof(mprox_pool), 1, &mappable));
        const int pool = own_pools_[shard].get();
        if (pool < 0 || bpf_map_update_elem(pools_map_.get(), &index, &pool, BPF_ANY) != 0)
            return std::unexpected(failed("cannot make a pool"));
    }
    for (const mproto_prefix& prefix : settings.bypass) {
        const Address first{.ip = std::bit_cast<mprox_ip>(prefix.ip), .port = 0};
        const bool ipv4 = prefix.bits >= 96 && first.is_ipv4();
        mprox_bypass_key key{.bits = static_cast<__u32>(MPROX_BYPASS_FIXED_BITS + prefix.bits),
                             .slot = slot,
                             .port = prefix.port | (ipv4 ? __u32{MPROX_BYPASS_IP4} : 0),
                             .ip = {}};
        std::memcpy(key.ip, prefix.ip, sizeof key.ip);
        const std::uint8_t present = 1;
        if (bpf_map_update_elem(bypass_map_.get(), &key, &present, BPF_ANY) != 0) {
            const int error = errno;
            purge(slot);
            return std::unexpected(failed("cannot enter the bypass list", error));
        }
    }
    std::uint32_t generation = 0;
    while (generation == 0)
        if (::getrandom(&generation, sizeof generation, 0) != sizeof generation) generation = 0;
    volatile mprox_context& context = contexts_[slot];
    context.alive = 0;
    context.engine = 0;
    context.flags = settings.block_udp ? MPROX_BLOCK_UDP : 0;
    context.timeout = settings.timeout_ms;
    context.shards = settings.shards;
    context.spread = 0;
    context.room = 0;
    for (std::uint32_t shard = 0; shard < MPROX_SHARDS; shard++) {
        context.reported[shard] = 0;
        context.done[shard] = 0;
        context.missed[shard] = 0;
        context.opened[shard] = 0;
        context.quiet[shard] = 0;
        context.heard[shard] = 0;
        context.looks[shard] = 0;
        context.awake[shard] = 0;
        for (volatile std::uint32_t& place : context.spares[shard]) place = 0;
    }
    context.members = 0;
    context.held = 0;
    context.denied = 0;
    context.unwatched = 0;
    context.netns = 0;
    context.generation = generation;
    return mprox_call{.slot = slot, .generation = generation};
}

// A dead engine left its list behind, so the whole table is looked through.
void Programs::purge(std::uint32_t slot) {
    std::vector<mprox_bypass_key> keys;
    mprox_bypass_key key{}, next{};
    for (const void* from = nullptr; bpf_map_get_next_key(bypass_map_.get(), from, &next) == 0; from = &key) {
        key = next;
        if (key.slot == slot) keys.push_back(key);
    }
    for (const auto& stale : keys) bpf_map_delete_elem(bypass_map_.get(), &stale);
    for (std::uint32_t index = slot * MPROX_SHARDS; index < (slot + 1) * MPROX_SHARDS; index++)
        for (const Fd* map : {&rings_map_, &pools_map_}) bpf_map_delete_elem(map->get(), &index);
}

void Programs::destroy(RunDir& dir, std::uint32_t slot) {
    if (const std::uint32_t engine = contexts_[slot].engine)
        ::unlink((dir.engines() + "/" + std::to_string(engine)).c_str());
    contexts_[slot].generation = 0;
    contexts_[slot].alive = 0;
    purge(slot);
}

void Programs::sweep(RunDir& dir) {
    bool used = false;
    for (std::uint32_t slot = 0; slot < MPROX_SLOTS; slot++) {
        if (in_use(contexts_[slot]))
            used = true;
        else if (contexts_[slot].generation)
            destroy(dir, slot);
    }
    used = tidy_splices(*this) || used;
    // Renamed first: whatever ends us between two pins, no set that lacks one bears the name of a whole one.
    const std::string going = directory_ + unfinished;
    if (!used) {
        remove_tree(going);
        ::rename(directory_.c_str(), going.c_str());
    }
    if (const auto bpf = dir.bpf())
        for (const auto& other : directories_in(*bpf))
            if (other.ends_with(unfinished) || (other != directory_ && is_abandoned(other))) remove_tree(other);
    dir.tidy();
}

bool Programs::join(mprox_call call) const { return run(join_, call) == 0; }
bool Programs::serve(mprox_call call) const { return run(serve_, call) == 0; }

mprox_handed Programs::hand_over(mprox_hand_over& call) const {
    const int handed = run(hand_over_, call);
    return handed < 0 ? MPROX_HANDED_FULL : static_cast<mprox_handed>(handed);
}

bool Programs::ask(mprox_ask call) const { return run(ask_, call) == 0; }

bool Programs::take_back(mprox_take_back call) const { return run(take_back_, call) == 0; }

void Programs::measure(mprox_measure& call) const { run(measure_, call); }

void Programs::reroute(const mprox_splice_key& key, std::uint32_t device) const {
    mprox_reroute call{.key = key, .ifindex = device, .pad = 0};
    run(reroute_, call);
}

void Programs::set_local(std::uint64_t cookie, const mprox_ip& ip) const {
    bpf_map_update_elem(locals_map_.get(), &cookie, &ip, BPF_ANY);
}

}  // namespace mprox
