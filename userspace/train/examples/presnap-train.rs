// SPDX-License-Identifier: GPL-2.0-only

//! The trainer by itself, for work on it; `presnap train` is the same.

use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "presnap-train", version)]
struct Cli {
    #[command(flatten)]
    args: presnap_train::cli::Args,
}

fn main() -> ExitCode {
    match presnap_train::cli::run(Cli::parse().args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("presnap-train: {e:#}");
            ExitCode::FAILURE
        }
    }
}
