// SPDX-License-Identifier: MIT
#include "engine/rundir.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>

namespace mprox {
namespace {

constexpr const char* name = "/run/mprox";

std::string failed(const std::string& what) { return what + ": " + std::strerror(errno); }

// True when the first process's mount namespace is another one than ours, and open to us.
bool elsewhere() {
    struct stat ours {}, first {};
    return ::stat("/proc/self/ns/mnt", &ours) == 0 && ::stat("/proc/1/ns/mnt", &first) == 0 &&
           ours.st_ino != first.st_ino && ::access("/proc/1/root/run", W_OK) == 0;
}

// Runs `call` where the first process sees the file systems. In a child: this process stays where it is.
bool in_first_namespace(const std::function<bool()>& call) {
    if (!elsewhere()) return call();
    const pid_t child = ::fork();
    if (child == 0) {
        const int ns = ::open("/proc/1/ns/mnt", O_RDONLY | O_CLOEXEC);
        const bool done = ns >= 0 && ::setns(ns, CLONE_NEWNS) == 0 && call();
        ::_exit(done ? 0 : errno);
    }
    int status = 0;
    if (child < 0 || ::waitpid(child, &status, 0) != child) return false;
    errno = WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
    return errno == 0;
}

bool is_bpf_mount(const std::string& path) {
    struct statfs status {};
    return ::statfs(path.c_str(), &status) == 0 && status.f_type == BPF_FS_MAGIC;
}

}  // namespace

std::expected<RunDir, std::string> RunDir::lock() {
    const std::string path = (elsewhere() ? "/proc/1/root" : "") + std::string(name);
    const std::string lock_path = path + "/lock";
    for (;;) {
        if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return std::unexpected(failed("cannot make " + path));
        Fd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
        if (!lock && errno == ENOENT) continue;  // tidied away between the two calls
        if (!lock) return std::unexpected(failed("cannot open " + lock_path));
        while (::flock(lock.get(), LOCK_EX) != 0)
            if (errno != EINTR) return std::unexpected(failed("cannot lock " + lock_path));
        struct stat held {}, current {};
        if (::fstat(lock.get(), &held) == 0 && ::stat(lock_path.c_str(), &current) == 0 && held.st_ino == current.st_ino)
            return RunDir(path, std::move(lock));
    }
}

std::expected<std::string, std::string> RunDir::bpf() {
    const std::string path = path_ + "/bpf";
    if (is_bpf_mount(path)) return path;
    const std::string plain = std::string(name) + "/bpf";
    const bool mounted = in_first_namespace([&] {
        if (::mkdir(plain.c_str(), 0700) != 0 && errno != EEXIST) return false;
        return ::mount("mprox", plain.c_str(), "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") == 0;
    });
    if (!mounted) return std::unexpected(failed("cannot mount a BPF file system on " + plain));
    return path;
}

std::string RunDir::engines() {
    const std::string path = path_ + "/engines";
    ::mkdir(path.c_str(), 0700);
    return path;
}

void RunDir::tidy() {
    const std::string bpf = path_ + "/bpf";
    const std::string engines = path_ + "/engines";
    if (DIR* entries = ::opendir(engines.c_str())) {
        // An engine that was killed left its file; its number says whether it lives.
        while (const dirent* entry = ::readdir(entries)) {
            const int pid = std::atoi(entry->d_name);
            if (pid > 0 && ::kill(pid, 0) != 0 && errno == ESRCH) ::unlink((engines + "/" + entry->d_name).c_str());
        }
        ::closedir(entries);
    }
    // A living engine may have its pins in a mount that this process does not see: they would go with the directory.
    if (::rmdir(engines.c_str()) != 0 && errno != ENOENT) return;
    // Only an empty BPF file system is given up: others may have pinned theirs beside ours. An unmount would
    // take the pins along, so it must never be reached with any left.
    struct stat status {};
    if (is_bpf_mount(bpf) && ::stat(bpf.c_str(), &status) == 0 && status.st_nlink == 2)
        in_first_namespace([] { return ::umount((std::string(name) + "/bpf").c_str()) == 0; });
    if (!is_bpf_mount(bpf)) ::rmdir(bpf.c_str());
    // The directory goes only when all else is gone; the lock file is the last thing in it.
    if (::access(bpf.c_str(), F_OK) != 0 && ::access(engines.c_str(), F_OK) != 0) {
        ::unlink((path_ + "/lock").c_str());
        ::rmdir(path_.c_str());
    }
}

}  // namespace mprox
