// SPDX-License-Identifier: GPL-2.0-only

//! Spans of time, and sleeping.

/// A span of time.
#[derive(Clone, Copy, Debug)]
pub struct Delta {
    ns: u64,
}

impl Delta {
    /// So many milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self { ns: ms * 1_000_000 }
    }
}

/// Sleeping.
pub mod delay {
    use super::Delta;

    /// Sleeps for so long.
    pub fn fsleep(delta: Delta) {
        presnap_machine::Machine::current().sleep(delta.ns);
    }
}
