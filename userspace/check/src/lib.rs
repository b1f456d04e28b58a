// SPDX-License-Identifier: GPL-2.0-only

//! Checks a region with the engine's own code, and repairs what can be repaired without guessing.
//!
//! First all is read, and for each fault it is decided what would be done about it; nothing is written. Then, if asked for,
//! [`repair`](Checked::repair) writes, in an order in which each step leaves a region that is no worse than before: what
//! refers to something comes after it, a new version goes to the copy that is not the current one, and while maps and
//! index are written the root does not say that the region was closed in order.
//!
//! What is taken for certain: what has a good checksum and is referred to by something that has; that a structure of which a
//! version is missing may lack what that version had. So where changes may be unknown, the next delta is full; where
//! blocks preserved for images may be unknown, images are given up, but only if that is allowed.

mod content;
mod index;
mod intent;
mod medium;
mod orphans;
mod region;
mod repair;
mod report;
mod snapshots;

pub use medium::{Device, Medium, BLOCK};
pub use region::Refused;
pub use report::{Fault, Remedy, Report};

use region::Work;

/// What to look at, and what may be given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Read all preserved blocks, too.
    pub data: bool,
    /// Snapshots that are damaged may be removed, and images that may be wrong given up.
    pub drop_damaged: bool,
    /// The region may change meanwhile.
    pub live: bool,
}

/// What is being done, how far it is, and of how much.
pub type Watch<'a> = &'a mut dyn FnMut(&'static str, u64, u64);

/// A region that was checked.
pub struct Checked {
    /// What was found.
    pub report: Report,
    work: Work,
}

/// Checks a region; nothing is written.
///
/// # Errors
///
/// If it is no region, or is damaged so that nothing can be said of it.
pub fn check(medium: &dyn Medium, options: Options, watch: Watch<'_>) -> Result<Checked, Refused> {
    let mut work = Work::open(medium, options)?;
    work.check_room();
    intent::check(&mut work, medium)?;
    index::check(&mut work, medium, watch)?;
    let manifests = snapshots::manifests(&mut work, medium, watch);
    orphans::duplicates(&mut work, medium);
    content::check(&mut work, medium, &manifests, watch);
    orphans::check(&mut work, medium);
    orphans::dirty_pages(&mut work, medium);
    work.finish();
    let report = work.report();
    Ok(Checked { report, work })
}
