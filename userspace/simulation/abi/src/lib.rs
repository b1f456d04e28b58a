// SPDX-License-Identifier: GPL-2.0-only

//! Stands in for `presnap_abi` (`module/abi`), as far as presnap's target uses it: device-mapper, bios,
//! dm-io, threads and sysfs of a simulated machine. It knows nothing of snapshots.
//!
//! What has no counterpart there is for whoever plays the rest of the kernel: [`dm::Table`] loads a
//! table line and sends bios to it, [`sysfs::write`] writes to a file.

pub mod bio;
pub mod clock;
pub mod dm;
pub mod global;
pub mod io;
pub mod memory;
pub mod sysfs;
pub mod table;
pub mod thread;

/// For the macros of this crate.
#[doc(hidden)]
pub use kernel as kernel_crate;
