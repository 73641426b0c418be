//! `siteline`: the command line. Arguments, rendering and exit codes; what is planned and run lives in `siteline-pipeline`.

#[macro_use]
mod out;

mod args;
mod commands;
mod diagnostic;
mod partial;
mod project;
mod report;
mod reporter;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = args::Args::parse();
    // A verb that only shows things ends with its reader. One that starts workers must outlive theirs.
    if !args.command.starts_workers() {
        sigpipe::reset();
    }
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env().add_directive(args.level().into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none())
        .without_time()
        .with_target(false)
        .init();
    match commands::run(args) {
        Ok(code) => code,
        Err(error) => diagnostic::show(&error),
    }
}
