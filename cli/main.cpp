// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <string_view>

#include "cli/doctor.hpp"
#include "cli/run.hpp"
#include "cli/serve.hpp"

namespace {

// Started without some of the standard descriptors, we must not take others for them. A program that we become finds them as
// they were.
void occupy_standard_descriptors() {
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (::fcntl(fd, F_GETFD) < 0 && ::open("/dev/null", O_RDWR | O_CLOEXEC) != fd) return;
}

}  // namespace

int main(int argc, char** argv) {
    occupy_standard_descriptors();
    int exit_code = 0;
    CLI::App app("mprox sends a program's connections through a SOCKS or HTTP proxy; the program cannot tell.", "mprox");
    app.require_subcommand(1);
    app.set_version_flag("--version", "mprox " MPROX_VERSION);
    // What follows the first `--` is no concern of the option parser.
    const auto rest = std::find(argv + 1, argv + argc, std::string_view("--"));
    const std::vector<std::string> after_mark(std::min(rest + 1, argv + argc), argv + argc);
    mprox::add_run_command(app, {argc, argv}, rest != argv + argc, after_mark, exit_code);
    mprox::add_serve_command(app, exit_code);
    mprox::add_doctor_command(app, exit_code);
    try {
        app.parse(static_cast<int>(rest - argv), argv);
    } catch (const CLI::Success& asked) {  // --help, --version
        return app.exit(asked);
    } catch (const CLI::RequiredError&) {
        if (argc > 1) std::cerr << "mprox: there is no command '" << argv[1] << "'";
        std::cerr << (argc > 1 ? "; " : "mprox: ") << "say what to do: run, serve or doctor; see mprox --help\n";
        return 2;
    } catch (const CLI::ParseError& error) {
        const bool run = argc > 1 && std::string_view(argv[1]) == "run";
        std::cerr << "mprox" << (run ? " run: " : ": ") << error.what() << "; see mprox --help\n";
        return run ? int{mprox::run_failed} : 2;
    }
    return exit_code;
}
