// SPDX-License-Identifier: GPL-2.0-only

//! The target's real code (`module/target`) on a simulated machine.

#![deny(unsafe_code)]

/// The files of `module/target`, as they are. Their `crate` is this one, so they are found there too.
#[path = "../../../module/target"]
mod target {
    pub(crate) mod device;
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
    pub(crate) mod worker;
}

use target::{device, image, knobs, models, presnap, region, registry, route, sysfs, worker};

mod config;
mod crash;
mod history;
mod inspect;
mod oracle;
mod run;
mod world;

pub use run::{run, Outcome};
