// SPDX-License-Identifier: GPL-2.0-only

//! What a check found.

use serde::Serialize;

/// What can be done about a fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// This repairs it.
    Repair(String),
    /// It cannot be repaired, for this reason.
    Left(String),
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What.
    pub what: String,
    /// Whether data is lost by it: else another copy serves, or slots are wasted.
    pub error: bool,
    /// What can be done.
    pub remedy: Remedy,
}

impl Fault {
    /// Whether it can be repaired.
    pub fn repairable(&self) -> bool {
        matches!(self.remedy, Remedy::Repair(_))
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Identity of the region.
    pub region_uuid: [u8; 16],
    /// Identity of the origin.
    pub origin_id: [u8; 16],
    /// Size of the origin.
    pub origin_sectors: u64,
    /// Number of slots.
    pub slots: u32,
    /// Slots in use.
    pub used_slots: u64,
    /// Closed in order.
    pub clean: bool,
    /// The next send must be full.
    pub full_needed: bool,
    /// There was a crash since the last snapshot.
    pub after_crash: bool,
    /// Extents that count as changed after a crash, of so many blocks.
    pub intent_extents: u64,
    /// Blocks of an extent.
    pub extent_blocks: u64,
    /// Pages of the dirty map that count.
    pub dirty_pages: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Their chunks.
    pub chunks: u64,
    /// What is wrong.
    pub faults: Vec<Fault>,
}
