// SPDX-License-Identifier: GPL-2.0-only

//! presnap's effects: what the engine decides, carried out by the abi.
//!
//! The way of a bio: [`presnap`] (the target) -> [`route`] -> the origin, with [`gate`-held and
//! guarded](route) bios taking the turn through [`worker`]. The way of a snapshot: [`message`] or a
//! trigger -> [`worker`] -> `worker/{stage, freeze, guard, drain, seal}`.

#![deny(unsafe_code)]

mod device;
mod growth;
mod image;
mod knobs;
mod message;
mod models;
mod presnap;
mod records;
mod region;
mod registry;
mod route;
mod status;
mod sysfs;
mod words;
mod worker;

use kernel::prelude::*;
use presnap_abi::dm::Registration;

module! {
    type: Presnap,
    name: "dm_presnap",
    authors: ["The presnap developers"],
    description: "device-mapper target presnap: snapshots with predictive pre-copy",
    license: "GPL v2",
    alias: ["dm-presnap", "dm-presnap-image"],
}

/// The loaded module. Fields are dropped in order: first nobody can find a device, then none can
/// be made.
#[pin_data]
struct Presnap {
    #[pin]
    records: kernel::miscdevice::MiscDeviceRegistration<records::Reader>,
    #[pin]
    image: Registration,
    #[pin]
    presnap: Registration,
}

impl kernel::InPlaceModule for Presnap {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        registry::init();
        try_pin_init!(Self {
            records <- kernel::miscdevice::MiscDeviceRegistration::register(records::OPTIONS),
            image <- Registration::new::<image::Image>(module),
            presnap <- Registration::new::<presnap::Target>(module),
        })
    }
}
