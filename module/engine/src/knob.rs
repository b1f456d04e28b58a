// SPDX-License-Identifier: GPL-2.0-only

//! The knobs of a device: names, units, ranges, defaults. One table for the kernel's sysfs files
//! and for whoever documents them.

use crate::table::parse_number;

/// A knob. The discriminant is its place in [`KNOBS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Knob {
    /// Who predicts.
    Predictor,
    /// Predict and count, but copy nothing ahead of time.
    DryRun,
    /// Scope of snapshots that do not say their own.
    Scope,
    /// A dirty area is staged when P(written again before T0) is below this.
    ThresholdPermille,
    /// A clean block is staged when P(written after T0) is above this (scope image).
    GuardThresholdPermille,
    /// The time to T0 that is assumed while T0 is not known.
    HorizonMs,
    /// How often the predictor runs.
    TickMs,
    /// How long before a known T0 what is left is copied, hot or not, and mirrored.
    LeadMs,
    /// Most blocks staged for the coming snapshot; 0 for a half of the region.
    StagingBudgetBlocks,
    /// Most bytes copied ahead of time per second; 0 for no limit.
    CopyBandwidthKib,
    /// Longest final copy in the freeze.
    FreezeBudgetUs,
    /// Mirroring of writes to hot staged blocks.
    Mirror,
    /// A snapshot every so often; 0 for never.
    ScheduleMs,
    /// A snapshot after so many operations; 0 for never.
    TriggerOps,
    /// A snapshot at so many dirty blocks; 0 for never.
    TriggerDirtyBlocks,
    /// Least time between two triggered snapshots.
    MinDistanceMs,
    /// How long an extent keeps its durable intent without a write, about.
    IntentCleanMs,
    /// How long a write may wait for the region; 0 for ever.
    GuardTimeoutMs,
    /// An event is raised when less of the region is free; 0 for never.
    LowWaterPermille,
    /// When the region is full, the oldest snapshot is deleted first.
    DropOldest,
}

/// How a knob is written.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// A number in a range.
    Number {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A number in a range, or `unlimited` (stored as `u64::MAX`).
    NumberOrUnlimited {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// One of these words, stored as its place.
    Words(&'static [&'static str]),
}

/// What there is to know about a knob.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// File name.
    pub name: &'static core::ffi::CStr,
    /// Values it takes.
    pub values: Values,
    /// Value at the start.
    pub default: u64,
}

const fn number(name: &'static core::ffi::CStr, min: u64, max: u64, default: u64) -> Spec {
    Spec { name, values: Values::Number { min, max }, default }
}

const fn words(
    name: &'static core::ffi::CStr,
    words: &'static [&'static str],
    default: u64,
) -> Spec {
    Spec { name, values: Values::Words(words), default }
}

/// The words of [`Knob::Predictor`], in the order of the wire numbers of `PredictorKind`.
pub const PREDICTORS: [&str; 5] = ["off", "age", "ewma", "stream", "model"];

/// Number of knobs.
pub const KNOB_COUNT: usize = 20;

const DAY_MS: u64 = 86_400_000;

/// All knobs, in the order of [`Knob`].
pub const KNOBS: [Spec; KNOB_COUNT] = [
    words(c"predictor", &PREDICTORS, 2),
    words(c"dry_run", &["0", "1"], 0),
    words(c"scope", &["delta", "image"], 0),
    number(c"threshold_permille", 0, 1000, 150),
    number(c"guard_threshold_permille", 0, 1000, 300),
    number(c"horizon_ms", 1, DAY_MS, 60_000),
    number(c"tick_ms", 10, 60_000, 200),
    number(c"lead_ms", 0, 600_000, 2_000),
    number(c"staging_budget_blocks", 0, u32::MAX as u64, 0),
    number(c"copy_bandwidth_kib", 0, 1 << 40, 0),
    Spec {
        name: c"freeze_budget_us",
        values: Values::NumberOrUnlimited { min: 0, max: 60_000_000 },
        default: 1_000,
    },
    words(c"mirror", &["auto", "off", "force"], 0),
    number(c"schedule_ms", 0, 366 * DAY_MS, 0),
    number(c"trigger_ops", 0, u64::MAX - 1, 0),
    number(c"trigger_dirty_blocks", 0, u64::MAX - 1, 0),
    number(c"min_distance_ms", 0, DAY_MS, 1_000),
    number(c"intent_clean_ms", 10, DAY_MS, 60_000),
    number(c"guard_timeout_ms", 0, DAY_MS, 60_000),
    number(c"low_water_permille", 0, 1000, 100),
    words(c"drop_oldest", &["0", "1"], 0),
];

impl Spec {
    /// Parses what was written to the knob: one word, perhaps with white space around it.
    /// `None` if the knob does not take it.
    pub fn parse(&self, input: &[u8]) -> Option<u64> {
        let word = input.trim_ascii();
        match self.values {
            Values::Number { min, max } => parse_number(word).filter(|n| (min..=max).contains(n)),
            Values::NumberOrUnlimited { min, max } => {
                if word.eq_ignore_ascii_case(b"unlimited") {
                    return Some(u64::MAX);
                }
                parse_number(word).filter(|n| (min..=max).contains(n))
            }
            Values::Words(words) => {
                words.iter().position(|w| word.eq_ignore_ascii_case(w.as_bytes())).map(|i| i as u64)
            }
        }
    }

    /// Writes a value as [`Spec::parse`] takes it.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn format(&self, value: u64, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        match self.values {
            Values::NumberOrUnlimited { .. } if value == u64::MAX => out.write_str("unlimited"),
            Values::Words(words) => {
                out.write_str(words.get(value as usize).copied().unwrap_or("?"))
            }
            _ => write!(out, "{value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_round_trip() {
        for spec in &KNOBS {
            let mut text = String::new();
            spec.format(spec.default, &mut text).unwrap();
            assert_eq!(spec.parse(text.as_bytes()), Some(spec.default), "{:?}", spec.name);
        }
        assert_eq!(KNOBS[Knob::MinDistanceMs as usize].name, c"min_distance_ms");
        assert_eq!(KNOBS[Knob::FreezeBudgetUs as usize].name, c"freeze_budget_us");
    }

    #[test]
    fn out_of_range_is_refused() {
        let tick = &KNOBS[Knob::TickMs as usize];
        assert_eq!(tick.parse(b"10\n"), Some(10));
        for bad in ["9", "60001", "", "ten", "-1", "10 20", "1e3", "99999999999999999999"] {
            assert_eq!(tick.parse(bad.as_bytes()), None, "{bad}");
        }
        let budget = &KNOBS[Knob::FreezeBudgetUs as usize];
        assert_eq!(budget.parse(b"Unlimited\n"), Some(u64::MAX));
        assert_eq!(budget.parse(b"60000001"), None);
        assert_eq!(KNOBS[Knob::Predictor as usize].parse(b"MODEL"), Some(4));
    }
}
