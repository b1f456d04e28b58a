// SPDX-License-Identifier: GPL-2.0-only

//! How many background copies may be started, so that foreground I/O hardly feels them.
//!
//! A copy costs about as much of the devices and the CPU as two I/Os of the foreground, whatever
//! their absolute speed is. So the share is counted in I/Os and not in bytes per second: one copy
//! for so many foreground I/Os, a floor for slow loads, and no limit while nobody else is there.
//! With a deadline ahead that the usual pace would miss, the share grows, up to one copy for two.

/// One copy for so many foreground I/Os, when there is no hurry.
pub const IOS_PER_COPY: u64 = 16;
/// And when there is.
pub const IOS_PER_COPY_MIN: u64 = 2;
/// Copies a second that are always allowed.
pub const FLOOR_PER_S: u64 = 500;
/// Most copies started at once, after a pause.
const BURST: i64 = 16;
/// The foreground is idle when it has done nothing for this long.
const IDLE_NS: u64 = 5_000_000;
/// A token, in billionths: the floor is counted by nanoseconds.
const TOKEN: u64 = 1_000_000_000;
/// The foreground's rate is measured over this time.
const RATE_NS: u64 = 100_000_000;

/// The pacer of one background activity.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    /// In units of `1 / TOKEN`; below 0 after a copy that counts more than there were tokens.
    tokens: i64,
    ios_per_copy: u64,
    last_ns: u64,
    last_ios: u64,
    /// When the foreground last did something.
    active_ns: u64,
    /// I/Os of the foreground a second, and since when they are counted for the next value.
    ios_per_s: u64,
    rate_ns: u64,
    rate_ios: u64,
}

impl Default for Pacer {
    fn default() -> Self {
        Self::new()
    }
}

impl Pacer {
    /// Nothing may be started until something was earned.
    pub const fn new() -> Self {
        Self {
            tokens: 0,
            ios_per_copy: IOS_PER_COPY,
            last_ns: 0,
            last_ios: 0,
            active_ns: 0,
            ios_per_s: 0,
            rate_ns: 0,
            rate_ios: 0,
        }
    }

    /// Earns for what the foreground did since the last call. `ios` counts its I/Os since the start;
    /// `waiting` says that some of it waits, for a guard perhaps, and so does nothing.
    pub fn earn(&mut self, now_ns: u64, ios: u64, waiting: bool) {
        if ios != self.last_ios || waiting {
            self.active_ns = now_ns;
        }
        // More than a second of either earns no more than the burst.
        let dt = now_ns.saturating_sub(self.last_ns).min(TOKEN);
        let done = ios.saturating_sub(self.last_ios).min(TOKEN);
        self.last_ns = now_ns;
        self.last_ios = ios;
        self.measure(now_ns, ios);
        let per_io = TOKEN.checked_div(self.ios_per_copy).unwrap_or(TOKEN);
        let earned = dt.saturating_mul(FLOOR_PER_S).saturating_add(done.saturating_mul(per_io));
        let most = BURST.saturating_mul(TOKEN as i64);
        let earned = i64::try_from(earned).unwrap_or(i64::MAX);
        self.tokens =
            if self.idle(now_ns) { most } else { self.tokens.saturating_add(earned).min(most) };
    }

    fn idle(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.active_ns) > IDLE_NS
    }

    fn measure(&mut self, now_ns: u64, ios: u64) {
        let dt = now_ns.saturating_sub(self.rate_ns);
        if dt >= RATE_NS {
            let done = ios.saturating_sub(self.rate_ios);
            self.ios_per_s = done.saturating_mul(1_000_000).checked_div(dt / 1000).unwrap_or(0);
            self.rate_ns = now_ns;
            self.rate_ios = ios;
        }
    }

    /// Copies a second to reckon with, half-way between the paces, if the foreground goes on as it does;
    /// 0 while there is no limit.
    pub fn copies_per_s(&self) -> u64 {
        if self.idle(self.last_ns) {
            return 0;
        }
        FLOOR_PER_S.saturating_add(self.ios_per_s / (IOS_PER_COPY / 2))
    }

    /// Sets the pace so that `copies` are made in `left_ns`, `None` if there is no hurry; never
    /// faster than one for [`IOS_PER_COPY_MIN`] I/Os, nor slower than one for [`IOS_PER_COPY`].
    pub fn hurry(&mut self, deadline: Option<(u64, u64)>) {
        self.ios_per_copy = match deadline {
            None => IOS_PER_COPY,
            Some((copies, left_ns)) => {
                let ios = self.ios_per_s.saturating_mul(left_ns / 1_000_000) / 1000;
                ios.checked_div(copies)
                    .unwrap_or(IOS_PER_COPY)
                    .clamp(IOS_PER_COPY_MIN, IOS_PER_COPY)
            }
        };
    }

    /// Whether a copy may be started.
    pub const fn ready(&self) -> bool {
        self.tokens >= TOKEN as i64
    }

    /// A copy was started that counts as so many: what was not earned yet is owed.
    pub fn spend(&mut self, copies: u32) {
        self.tokens = self.tokens.saturating_sub(i64::from(copies).saturating_mul(TOKEN as i64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend_all(p: &mut Pacer) -> u32 {
        let mut n = 0;
        while p.ready() {
            p.spend(1);
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
    fn a_deadline_hurries_within_bounds() {
        let mut p = Pacer::new();
        let mut ms = 0;
        let mut second = |p: &mut Pacer| {
            let mut copies = 0;
            for _ in 0..1000 {
                ms += 1;
                p.earn(ms * 1_000_000, ms * 64, false);
                copies += spend_all(p);
            }
            copies
        };
        second(&mut p);
        for (deadline, least, most) in [
            // 64,000 I/Os in the time left: one for eight.
            (Some((8_000, TOKEN)), 8_400, 8_600),
            (Some((1_000_000, TOKEN)), 15_900, 16_600),
            (Some((1, TOKEN)), 4_400, 4_600),
            (Some((0, TOKEN)), 4_400, 4_600),
            (Some((10, 0)), 15_900, 16_600),
            (None, 4_400, 4_600),
        ] {
            p.hurry(deadline);
            let copies = second(&mut p);
            assert!((least..=most).contains(&copies), "{deadline:?}: {copies}");
        }
        assert_eq!(p.copies_per_s(), 8_500);
    }

    #[test]
    fn large_copies_are_owed() {
        let mut p = Pacer::new();
        p.earn(TOKEN, 16, false);
        assert!(p.ready());
        p.spend(100);
        p.earn(TOKEN + 1, 16 + 80 * IOS_PER_COPY, false);
        assert!(!p.ready(), "16 were there, 100 are taken, 80 come back");
        p.earn(TOKEN + 2, 16 + 90 * IOS_PER_COPY, false);
        assert!(p.ready());
    }

    #[test]
    fn a_pause_earns_no_more_than_the_burst() {
        let mut p = Pacer::new();
        p.earn(u64::MAX / 2, u64::MAX / 2, false);
        assert_eq!(spend_all(&mut p), BURST as u32);
    }
}
