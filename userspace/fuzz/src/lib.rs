// SPDX-License-Identifier: GPL-2.0-only

//! Fuzz targets: one for each thing that presnap reads and does not trust.
//!
//! A target takes any bytes. It makes the structure of them that it tests, with its checksums put right unless the
//! bytes say otherwise (a fuzzer does not guess a CRC32C, and what lies behind it is what matters), hands that to the
//! engine, and panics if the engine's answer breaks a promise: not only by a panic of its own, but by accepting what
//! cannot be, by changing what it should keep, or by a result that differs from a second, plainer computation.
//!
//! `make fuzz` runs them under libFuzzer, `make test` for a moment; the tests of this crate replay the corpus.
//! A new target: a file in `targets/`, with `run` and `seeds`, and a line in [`TARGETS`].

pub mod bytes;
pub mod hostile;
pub mod net;
pub mod recover;
pub mod sample;
mod targets;

use targets as t;

/// A fuzz target.
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Takes an input; panics if a promise is broken.
    pub run: fn(&[u8]),
    /// Good inputs to begin with. They follow the formats, which a corpus on disk does not.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longest input that makes sense.
    pub longest: usize,
    /// Runs in `make test`: a second or two.
    pub runs: u32,
}

macro_rules! targets {
    ($($name:ident: $longest:expr, $runs:expr;)*) => {
        /// All targets.
        pub const TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            run: t::$name::run,
            seeds: t::$name::seeds,
            longest: $longest,
            runs: $runs,
        }),*];
    };
}

targets! {
    table: 256, 40_000;
    message: 256, 40_000;
    knob: 128, 40_000;
    model: 4096, 15_000;
    superblock: 512, 20_000;
    root: 4096, 4_000;
    index: 2048, 15_000;
    intent: 2048, 1_000;
    manifest: 4096, 25_000;
    region: 512, 1_500;
    stream: 1024, 10_000;
    replica: 512, 40_000;
    trace: 2048, 40_000;
    record: 64, 20_000;
}

/// Finds a target.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}
