// SPDX-License-Identifier: MIT
// libmprox on a descriptor: from C, and the owner type of C++.
#include <mprox/mprox.hpp>

#include "tests/abi/c_test.h"
#include "tests/abi/descriptor.hpp"
#include "tests/abi/process.hpp"

namespace conformance {
namespace {

TEST(Library, FromC) {
    const char* const failed = c_conversation();
    EXPECT_EQ(failed, nullptr) << failed;
}

TEST(Library, FromCpp) {
    auto made = mprox::ProxyDescriptor::create();
    ASSERT_TRUE(made) << made.error().message();
    mprox::ProxyDescriptor& fd = *made;
    EXPECT_TRUE(fd.set_config("server socks5://10.0.0.1\n"));
    EXPECT_EQ(fd.set_config("nonsense").error(), std::errc::invalid_argument);
    std::string text;
    for (int i = 0; i < 1000; ++i) text += "bypass 10.0.0.0/8\n";
    EXPECT_TRUE(fd.set_config(text));
    const auto config = fd.config();
    ASSERT_TRUE(config);
    EXPECT_GE(config->size(), text.size()) << "more than it first made room for";
    const Fd self = pidfd_of(::getpid());
    EXPECT_TRUE(fd.attach(self.get()));
    EXPECT_EQ(fd.stats().value().members, 1u);
    EXPECT_TRUE(fd.detach(self.get()));
    EXPECT_EQ(fd.detach(self.get()).error(), std::errc::no_such_file_or_directory);
    EXPECT_TRUE(fd.disable());
    EXPECT_TRUE(fd.connections().value().empty());
    EXPECT_EQ(Snapshot(fd.snapshot().value())["bypass"], "1000");
    EXPECT_EQ(mprox::ProxyDescriptor::create(8).error(), std::errc::invalid_argument);
}

}  // namespace
}  // namespace conformance
