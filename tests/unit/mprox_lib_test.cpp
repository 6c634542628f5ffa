// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <gtest/gtest.h>
#include <mprox/mprox.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <mprox/mprox.hpp>
#include <string>

#include "lib/announcement.hpp"
#include "tests/unit/mprox_c.h"

namespace mprox {
namespace {

/// A directory such as the kernel shows.
class Announcement : public testing::Test {
  protected:
    void SetUp() override {
        char name[] = "/tmp/mprox-unit-XXXXXX";
        ASSERT_NE(::mkdtemp(name), nullptr);
        directory = name;
    }
    void TearDown() override { std::filesystem::remove_all(directory); }
    void put(const char* name, const std::string& text) { std::ofstream(directory / name) << text; }
    std::expected<long, int> number() { return announced_number(directory.c_str()); }

    std::filesystem::path directory;
};

TEST_F(Announcement, IsRead) {
    put("abi_version", "1\n");
    put("syscall_number", "471\n");
    EXPECT_EQ(number(), 471);
    put("abi_version", "7\n");  // it only ever grows compatibly
    put("syscall_number", "4711\n");
    EXPECT_EQ(number(), 4711);
}

TEST_F(Announcement, MissingMeansNoCall) {
    const std::unexpected absent(ENOSYS);
    EXPECT_EQ(number(), absent);
    put("syscall_number", "471\n");
    EXPECT_EQ(number(), absent) << "without a version";
    std::filesystem::remove(directory / "syscall_number");
    put("abi_version", "1\n");
    EXPECT_EQ(number(), absent) << "without a number";
    EXPECT_EQ(announced_number((directory / "none").c_str()), absent);
    EXPECT_EQ(announced_number((directory / "abi_version").c_str()), absent) << "a file for a directory";
}

TEST_F(Announcement, NonsenseMeansNoCall) {
    const std::unexpected absent(ENOSYS);
    for (const char* text :
         {"", "\n", "471", "471\n\n", " 471\n", "0\n", "-1\n", "0x1d7\n", "471 \n", "2147483648\n",
          "99999999999999999999\n", "four\n", "471\n00000000000000000000000000000000"}) {
        SCOPED_TRACE(text);
        put("abi_version", "1\n");
        put("syscall_number", text);
        EXPECT_EQ(number(), absent);
    }
    put("syscall_number", "471\n");
    for (const char* text : {"", "0\n", "-1\n", "1.0\n"}) {
        SCOPED_TRACE(text);
        put("abi_version", text);
        EXPECT_EQ(number(), absent);
    }
}

TEST_F(Announcement, WhatKeptUsFromReadingIsToldApart) {
    put("abi_version", "1\n");
    std::filesystem::create_directory(directory / "syscall_number");
    EXPECT_EQ(number(), std::unexpected(EISDIR));
}

TEST(Library, EveryFunctionReportsAClosedDescriptorAndAnother) {
    EXPECT_STREQ(mprox_c_errors(-1, EBADF), "");
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    EXPECT_STREQ(mprox_c_errors(null, ENOTTY), "");
    ::close(null);
}

TEST(Library, TextThatCannotBeCountedIsTooBig) {
    EXPECT_EQ(mprox_set_config(-1, "", std::size_t{1} << 32), -1);
    EXPECT_EQ(errno, E2BIG);
}

TEST(Library, ProvidersHaveNames) {
    EXPECT_STREQ(mprox_provider_name(MPROX_PROVIDER_NONE), "none");
    EXPECT_STREQ(mprox_provider_name(MPROX_PROVIDER_KERNEL), "kernel");
}

TEST(ProxyDescriptor, OwnsItsDescriptor) {
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    {
        ProxyDescriptor first(ends[0]);
        ProxyDescriptor second(std::move(first));
        EXPECT_FALSE(first);
        EXPECT_EQ(second.get(), ends[0]);
        ProxyDescriptor third(ends[1]);
        third = std::move(second);
        EXPECT_EQ(::fcntl(ends[1], F_GETFD), -1) << "what it had before is closed";
        EXPECT_EQ(third.get(), ends[0]);
    }
    EXPECT_EQ(::fcntl(ends[0], F_GETFD), -1);
}

TEST(ProxyDescriptor, FailuresAreErrorCodes) {
    ProxyDescriptor none;
    const auto bad = std::make_error_code(std::errc::bad_file_descriptor);
    EXPECT_EQ(none.set_config("").error(), bad);
    EXPECT_EQ(none.config().error(), bad);
    EXPECT_EQ(none.enable().error(), bad);
    EXPECT_EQ(none.disable().error(), bad);
    EXPECT_EQ(none.attach(0).error(), bad);
    EXPECT_EQ(none.detach(0).error(), bad);
    EXPECT_EQ(none.stats().error(), bad);
    EXPECT_EQ(none.connections().error(), bad);
    EXPECT_EQ(none.snapshot().error(), bad);
}

}  // namespace
}  // namespace mprox
