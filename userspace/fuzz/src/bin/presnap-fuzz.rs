// SPDX-License-Identifier: GPL-2.0-only

//! All targets in one libFuzzer program; `PRESNAP_FUZZ` names the one to run, or is `list`. With `PRESNAP_FUZZ_SEEDS` its
//! seeds are written to that directory first. scripts/fuzz builds and runs it.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use presnap_fuzz::{find, Target, TARGETS};

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn choose() -> &'static Target {
    let name = std::env::var("PRESNAP_FUZZ").unwrap_or_default();
    if name == "list" {
        TARGETS.iter().for_each(|t| println!("{} {} {}", t.name, t.longest, t.runs));
        std::process::exit(0);
    }
    let Some(target) = find(&name) else {
        let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        eprintln!("PRESNAP_FUZZ is `{name}`, and must be one of: {}", names.join(" "));
        std::process::exit(2);
    };
    if let Ok(dir) = std::env::var("PRESNAP_FUZZ_SEEDS") {
        for (i, seed) in (target.seeds)().iter().enumerate() {
            let path = Path::new(&dir).join(format!("seed-{i:03}"));
            if let Err(e) = std::fs::write(&path, seed) {
                eprintln!("{}: {e}", path.display());
                std::process::exit(2);
            }
        }
    }
    target
}

libfuzzer_sys::fuzz_target!(init: { TARGET.get_or_init(choose); }, |data: &[u8]| {
    (TARGET.get_or_init(choose).run)(data);
});
