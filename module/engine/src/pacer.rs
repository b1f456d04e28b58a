// SPDX-License-Identifier: GPL-2.0-only

//! How many background copies may be started, so that foreground I/O hardly feels them.
//!
//! A copy costs about as much of the devices and the CPU as two I/Os of the foreground, whatever
//! their absolute speed is. So the share is counted in I/Os and not in bytes per second: one copy
//! for so many foreground I/Os, a floor for slow loads, and no limit while nobody else is there.

/// One copy for so many foreground I/Os.
pub const IOS_PER_COPY: u64 = 16;
/// Copies a second that are always allowed.
pub const FLOOR_PER_S: u64 = 500;
/// Most copies started at once, after a pause.
const BURST: u64 = 16;
/// The foreground is idle when it has done nothing for this long.
const IDLE_NS: u64 = 5_000_000;
/// A token, in billionths: the floor is counted by nanoseconds.
const TOKEN: u64 = 1_000_000_000;

/// The pacer of one background activity.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pacer {
    /// In units of `1 / TOKEN`.
    tokens: u64,
    last_ns: u64,
    last_ios: u64,
    /// When the foreground last did something.
    active_ns: u64,
}

impl Pacer {
    /// Nothing may be started until something was earned.
    pub const fn new() -> Self {
        Self { tokens: 0, last_ns: 0, last_ios: 0, active_ns: 0 }
    }

    /// Earns for what the foreground did since the last call. `ios` counts its I/Os since the start;
    /// `waiting` says that some of it waits, for a guard perhaps, and so does nothing.
    pub fn earn(&mut self, now_ns: u64, ios: u64, waiting: bool) {
        if ios != self.last_ios || waiting {
            self.active_ns = now_ns;
        }
        let idle = now_ns.saturating_sub(self.active_ns) > IDLE_NS;
        // More than a second of either earns no more than the burst.
        let dt = now_ns.saturating_sub(self.last_ns).min(TOKEN);
        let done = ios.saturating_sub(self.last_ios).min(TOKEN);
        self.last_ns = now_ns;
        self.last_ios = ios;
        let earned = dt
            .saturating_mul(FLOOR_PER_S)
            .saturating_add(done.saturating_mul(TOKEN / IOS_PER_COPY));
        let most = BURST.saturating_mul(TOKEN);
        self.tokens = if idle { most } else { self.tokens.saturating_add(earned).min(most) };
    }

    /// Whether a copy may be started.
    pub const fn ready(&self) -> bool {
        self.tokens >= TOKEN
    }

    /// A copy was started.
    pub fn spend(&mut self) {
        self.tokens = self.tokens.saturating_sub(TOKEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend_all(p: &mut Pacer) -> u32 {
        let mut n = 0;
        while p.ready() {
            p.spend();
            n += 1;
        }
        n
    }

    #[test]
    fn a_share_of_the_foreground() {
        let mut p = Pacer::new();
        p.earn(0, 0, false);
        let mut copies = 0;
        for ms in 1..=1000u64 {
            p.earn(ms * 1_000_000, ms * 64, false);
            copies += spend_all(&mut p);
        }
        // 64,000 I/Os in a second: 4,000 by share, 500 by the floor.
        assert!((4499..=4500).contains(&copies), "{copies}");
    }

    #[test]
    fn no_limit_while_nobody_else_is_there() {
        let mut p = Pacer::new();
        p.earn(1_000_000_000, 7, false);
        spend_all(&mut p);
        p.earn(1_004_000_000, 7, false);
        assert_eq!(spend_all(&mut p), 2, "not idle yet");
        p.earn(1_006_000_000, 7, false);
        assert_eq!(spend_all(&mut p), BURST as u32);
        p.earn(1_006_000_001, 7, false);
        assert_eq!(spend_all(&mut p), BURST as u32);
        // A writer that waits does nothing, but is there.
        p.earn(1_006_000_002, 7, true);
        assert_eq!(spend_all(&mut p), 0);
    }

    #[test]
    fn a_pause_earns_no_more_than_the_burst() {
        let mut p = Pacer::new();
        p.earn(u64::MAX / 2, u64::MAX / 2, false);
        assert_eq!(spend_all(&mut p), BURST as u32);
    }
}
