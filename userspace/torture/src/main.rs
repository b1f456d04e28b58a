// SPDX-License-Identifier: GPL-2.0-only

//! `presnap-torture`, see [`presnap_torture::torture`].

fn main() -> std::process::ExitCode {
    presnap_torture::torture::main()
}
