// SPDX-License-Identifier: MIT
#include "engine/fd.hpp"

#include <dirent.h>
#include <fcntl.h>

#include <cstdlib>
#include <vector>

namespace mprox {

void close_inherited() {
    std::vector<int> open;
    if (DIR* directory = ::opendir("/proc/self/fd")) {
        while (const dirent* entry = ::readdir(directory)) open.push_back(std::atoi(entry->d_name));
        ::closedir(directory);
    }
    for (const int fd : open) {
        const int flags = fd > STDERR_FILENO ? ::fcntl(fd, F_GETFD) : -1;
        if (flags >= 0 && !(flags & FD_CLOEXEC)) ::close(fd);
    }
}

}  // namespace mprox
