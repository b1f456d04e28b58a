// SPDX-License-Identifier: GPL-2.0-only

//! How fast the copier may go: a token bucket in blocks.
//!
//! A throttle at the mean rate cannot serve bursts of dirtying, so the bucket is deep (tens of
//! seconds) and fills faster while nobody else uses the devices.

/// What the bucket is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottleConfig {
    /// Blocks a second while there is foreground I/O; 0 is no limit at all.
    pub blocks_per_s: u32,
    /// Depth of the bucket in seconds of that rate.
    pub burst_s: u32,
    /// How many times faster it fills while there is none.
    pub idle_factor: u32,
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        Self { blocks_per_s: 0, burst_s: 30, idle_factor: 4 }
    }
}

/// A token bucket. A token is a block.
#[derive(Clone, Copy, Debug)]
pub struct Throttle {
    config: ThrottleConfig,
    tokens: u64,
    /// What is earned of the next token, in blocks x nanoseconds / second.
    remainder: u64,
    last_ns: Option<u64>,
}

const NS_PER_S: u64 = 1_000_000_000;
/// Time that is earned for at once at most: a worker that slept longer gets no more.
const STEP_MAX_NS: u64 = NS_PER_S;
/// Largest idle factor that counts: keeps the sums inside 64 bits.
const IDLE_FACTOR_MAX: u32 = 1000;

impl Throttle {
    /// An empty bucket.
    pub const fn new(config: ThrottleConfig) -> Self {
        Self { config, tokens: 0, remainder: 0, last_ns: None }
    }

    /// What it is set to.
    pub const fn config(&self) -> &ThrottleConfig {
        &self.config
    }

    /// Changes the setting; what is in the bucket stays, as far as it fits.
    pub fn configure(&mut self, config: ThrottleConfig) {
        self.config = config;
        self.tokens = self.tokens.min(self.depth());
    }

    /// Earns for the time since the last call. The first call starts the clock.
    pub fn earn(&mut self, now_ns: u64, foreground_inflight: u32) {
        let last = self.last_ns.replace(now_ns).unwrap_or(now_ns);
        let dt = now_ns.saturating_sub(last).min(STEP_MAX_NS);
        let factor = match foreground_inflight {
            0 => self.config.idle_factor.clamp(1, IDLE_FACTOR_MAX),
            _ => 1,
        };
        // At most 2^32 * 2^10 blocks a second for 2^30 ns: saturates a little above 2^63.
        let earned = u64::from(self.config.blocks_per_s)
            .saturating_mul(u64::from(factor))
            .saturating_mul(dt)
            .saturating_add(self.remainder);
        self.remainder = earned % NS_PER_S;
        self.tokens = self.tokens.saturating_add(earned / NS_PER_S).min(self.depth());
    }

    /// Takes up to `blocks` tokens and returns how many there were.
    pub fn take(&mut self, blocks: u32) -> u32 {
        if self.config.blocks_per_s == 0 {
            return blocks;
        }
        let granted = u64::from(blocks).min(self.tokens);
        self.tokens = self.tokens.wrapping_sub(granted);
        granted as u32
    }

    /// Gives tokens back that were taken and not used.
    pub fn give_back(&mut self, blocks: u32) {
        self.tokens = self.tokens.saturating_add(u64::from(blocks)).min(self.depth());
    }

    /// Tokens there are; `u64::MAX` without a limit.
    pub const fn available(&self) -> u64 {
        if self.config.blocks_per_s == 0 {
            u64::MAX
        } else {
            self.tokens
        }
    }

    const fn depth(&self) -> u64 {
        let burst_s = if self.config.burst_s == 0 { 1 } else { self.config.burst_s };
        (self.config.blocks_per_s as u64).saturating_mul(burst_s as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn throttle() -> Throttle {
        let mut t =
            Throttle::new(ThrottleConfig { blocks_per_s: 1000, burst_s: 2, idle_factor: 4 });
        t.earn(0, 1);
        t
    }

    #[test]
    fn earns_its_rate() {
        let mut t = throttle();
        assert_eq!(t.take(1), 0);
        for i in 1..=100 {
            t.earn(i * 10 * MS, 1);
        }
        assert_eq!(t.available(), 1000);
        assert_eq!(t.take(600), 600);
        assert_eq!(t.take(600), 400);
        t.give_back(5);
        assert_eq!(t.take(600), 5);
    }

    #[test]
    fn loses_no_fraction() {
        let mut t = throttle();
        for i in 1..=10_000 {
            t.earn(i * 100_000, 1);
        }
        assert_eq!(t.available(), 1000);
    }

    #[test]
    fn idle_earns_more_up_to_the_depth() {
        let mut t = throttle();
        t.earn(100 * MS, 0);
        assert_eq!(t.available(), 400);
        for i in 1..100 {
            t.earn(i * 1000 * MS, 0);
        }
        assert_eq!(t.available(), 2000);
    }

    #[test]
    fn a_long_sleep_and_a_clock_that_steps_back() {
        let mut t = throttle();
        t.earn(3_600_000 * MS, 1);
        assert_eq!(t.available(), 1000);
        t.earn(0, 1);
        assert_eq!(t.available(), 1000);
    }

    #[test]
    fn no_limit() {
        let mut t = Throttle::new(ThrottleConfig::default());
        assert_eq!(t.take(u32::MAX), u32::MAX);
        assert_eq!(t.available(), u64::MAX);
        t.configure(ThrottleConfig {
            blocks_per_s: u32::MAX,
            burst_s: u32::MAX,
            idle_factor: u32::MAX,
        });
        t.earn(0, 0);
        t.earn(u64::MAX, 0);
        assert!(t.available() > 0);
        t.configure(ThrottleConfig { blocks_per_s: 1, burst_s: 0, idle_factor: 0 });
        assert_eq!(t.available(), 1);
    }
}
