// SPDX-License-Identifier: GPL-2.0-only

//! `presnap-cut`, see [`presnap_torture::cut`].

fn main() -> std::process::ExitCode {
    presnap_torture::cut::main()
}
