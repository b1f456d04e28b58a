// SPDX-License-Identifier: GPL-2.0-only

//! Safe wrappers over the kernel interfaces that a device-mapper target needs and that the
//! `kernel` crate does not have yet: device-mapper itself, bios, dm-io, kernel threads, sysfs.
//!
//! Every `unsafe` of presnap is here. Nothing here knows what a snapshot is.

mod bindings;

pub mod bio;
pub mod clock;
pub mod dm;
pub mod global;
pub mod io;
pub mod memory;
pub mod sysfs;
pub mod thread;

/// For the macros of this crate.
#[doc(hidden)]
pub use kernel as kernel_crate;
