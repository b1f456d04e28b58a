// SPDX-License-Identifier: GPL-2.0-only

//! The twelve features of an area at an instant, all of them small integers.
//!
//! Times and counters span many orders of magnitude, so each feature is a logarithm in Q8 (256 is a
//! factor of two). The horizon is a feature like the others: one model answers for every horizon.
//! The selection is the twelve-feature set of the project's study of real traces, with the horizon
//! in the place of the replay support. [`SCHEMA_HASH`] names names, order and units; a model
//! that was trained for another schema is refused.

use crate::fixed::ilog2_q8;

/// Number of features.
pub const FEATURES: usize = 12;

/// Names and units of the features, in order.
pub const SCHEMA: &str = "presnap-features-1 \
age:log2(ms) d10:log2(1/4096) d60:log2(1/4096) d600:log2(1/4096) mean_gap:log2(ms) \
left_d10:log2(1/4096) region_d10:log2(1/4096) stream_eta:log2(ms) since_burst:log2(ms) \
lifetime_rate:log2(visits/2^32ms) last_gap:log2(ms) horizon:log2(ms) all:q8";

/// CRC-32C of [`SCHEMA`].
pub const SCHEMA_HASH: u32 = 0x8803_2275;

/// Short names, for reports.
pub const NAMES: [&str; FEATURES] = [
    "age",
    "d10",
    "d60",
    "d600",
    "mean_gap",
    "left_d10",
    "region_d10",
    "stream_eta",
    "since_burst",
    "lifetime_rate",
    "last_gap",
    "horizon",
];

/// The value of a time that is not known or never came: above every time that is told apart.
pub const NEVER: i16 = 30 * 256;

/// The features of an area, in the order of [`NAMES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FeatureVector(pub [i16; FEATURES]);

/// What the features are made of, in natural units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Time since the area was written, `None` if it is not remembered.
    pub age_ms: Option<u64>,
    /// Writes decayed with 10 s, in 1/4096.
    pub d10: u32,
    /// Writes decayed with 60 s.
    pub d60: u32,
    /// Writes decayed with 600 s.
    pub d600: u32,
    /// Mean time between visits.
    pub mean_gap_ms: Option<u64>,
    /// 10 s counter of the area to the left.
    pub left_d10: u32,
    /// 10 s counter of the region.
    pub region_d10: u32,
    /// When a stream is expected in the area.
    pub stream_eta_ms: Option<u64>,
    /// Time since the last burst of writes on the device began.
    pub since_burst_ms: Option<u64>,
    /// Visits since the first one.
    pub visits: u32,
    /// Time since the first write that is remembered.
    pub lifetime_ms: u64,
    /// Time since the device's first write; 0 if not known. Not a feature: the heuristics use it.
    pub observed_ms: u64,
    /// Time between the last two visits.
    pub last_gap_ms: Option<u64>,
    /// The horizon asked about.
    pub horizon_ms: u64,
}

impl Inputs {
    /// Computes the features.
    pub fn features(&self) -> FeatureVector {
        FeatureVector([
            time(self.age_ms),
            count(self.d10),
            count(self.d60),
            count(self.d600),
            time(self.mean_gap_ms),
            count(self.left_d10),
            count(self.region_d10),
            time(self.stream_eta_ms),
            time(self.since_burst_ms),
            rate(self.visits, self.lifetime_ms),
            time(self.last_gap_ms),
            time(Some(self.horizon_ms)),
        ])
    }
}

/// log2(ms + 1) in Q8, below [`NEVER`].
fn time(ms: Option<u64>) -> i16 {
    match ms {
        Some(ms) => i16::try_from(ilog2_q8(ms.saturating_add(1))).unwrap_or(NEVER).min(NEVER - 1),
        None => NEVER,
    }
}

/// log2(counter + 1) in Q8.
fn count(counter: u32) -> i16 {
    i16::try_from(ilog2_q8(u64::from(counter).saturating_add(1))).unwrap_or(i16::MAX)
}

/// log2 of visits per 2^32 ms in Q8: differences of logarithms need no division.
fn rate(visits: u32, lifetime_ms: u64) -> i16 {
    if visits == 0 {
        return 0;
    }
    // A lifetime below a second says little about a rate.
    let life = i32::from(ilog2_q8(lifetime_ms.saturating_add(1000)));
    let rate = i32::from(ilog2_q8(u64::from(visits))) + (32 << 8) - life;
    i16::try_from(rate.max(0)).unwrap_or(i16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crc32c::crc32c;

    #[test]
    fn schema_hash_is_of_the_schema() {
        assert_eq!(SCHEMA_HASH, crc32c(0, SCHEMA.as_bytes()));
        let named: Vec<_> = SCHEMA.split(' ').filter_map(|w| w.split_once(':')).collect();
        assert_eq!(named.len(), FEATURES + 1);
        for (name, (word, _)) in NAMES.iter().zip(&named) {
            assert_eq!(name, word);
        }
    }

    #[test]
    fn unknown_is_never() {
        let f = Inputs { horizon_ms: 1023, ..Inputs::default() }.features().0;
        assert_eq!(f, [NEVER, 0, 0, 0, NEVER, 0, 0, NEVER, NEVER, 0, NEVER, 10 << 8]);
    }

    #[test]
    fn logarithms() {
        let f = Inputs {
            age_ms: Some(u64::MAX),
            d10: 4095,
            d60: u32::MAX,
            visits: 1,
            lifetime_ms: 3096,
            stream_eta_ms: Some(0),
            ..Inputs::default()
        }
        .features()
        .0;
        assert_eq!(f[0], NEVER - 1);
        assert_eq!(f[1], 12 << 8);
        assert_eq!(f[2], 32 << 8);
        assert_eq!(f[7], 0);
        assert_eq!(f[9], (32 - 12) << 8);
        assert!(rate(u32::MAX, 0) > (32 + 22) * 256);
        assert_eq!(rate(1, u64::MAX), 0);
    }
}
