// SPDX-License-Identifier: GPL-2.0-only

//! The target's real code (`module/target`) on a simulated machine that loses power at every step.
//!
//! Concurrency has the grain of the stand-ins: the worker can be interrupted wherever it takes a lock,
//! reads the clock, or starts or asks for a transfer, and nowhere else. `docs/simulation.md` says what is
//! simulated, what is checked, and what is not.

#![deny(unsafe_code)]

/// The files of `module/target`, as they are. Their `crate` is this one, so they are found there too.
#[path = "../../../module/target"]
mod target {
    pub(crate) mod device;
    pub(crate) mod growth;
    pub(crate) mod image;
    pub(crate) mod knobs;
    pub(crate) mod message;
    pub(crate) mod models;
    pub(crate) mod presnap;
    pub(crate) mod region;
    pub(crate) mod registry;
    pub(crate) mod route;
    pub(crate) mod status;
    pub(crate) mod sysfs;
    pub(crate) mod words;
    pub(crate) mod worker;
}

use target::{
    device, growth, image, knobs, models, presnap, region, registry, route, status, sysfs, words,
    worker,
};

mod config;
mod crash;
mod history;
mod inspect;
mod oracle;
mod run;
mod world;

pub use run::{run, Outcome};
