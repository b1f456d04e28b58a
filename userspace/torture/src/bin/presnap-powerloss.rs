// SPDX-License-Identifier: GPL-2.0-only

//! `presnap-powerloss`, see [`presnap_torture::powerloss`].

fn main() -> std::process::ExitCode {
    presnap_torture::powerloss::main()
}
