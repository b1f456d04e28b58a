// SPDX-License-Identifier: GPL-2.0-only

//! What a seed stands for: disks, settings, load and faults.

use fastrand::Rng;
use presnap_machine::disk::Speed;
use presnap_machine::Pace;

/// What goes wrong in a run, besides the power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nothing.
    None,
    /// Some reads of the origin fail.
    OriginReads,
    /// Some writes to the origin fail.
    OriginWrites,
    /// Some reads of the region fail.
    RegionReads,
    /// Some writes to the region fail.
    RegionWrites,
    /// The region fails for good, at some time.
    RegionDies,
}

impl Trouble {
    /// The region may have failed.
    pub(crate) fn of_region(self) -> bool {
        matches!(self, Self::RegionReads | Self::RegionWrites | Self::RegionDies)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) origin_blocks: u64,
    pub(crate) region_blocks: u64,
    pub(crate) origin_cached: bool,
    pub(crate) region_cached: bool,
    pub(crate) origin_speed: Speed,
    pub(crate) region_speed: Speed,
    pub(crate) pace: Pace,
    /// Of most snapshots.
    pub(crate) image: bool,
    pub(crate) fail_writes: bool,
    pub(crate) knobs: Vec<(&'static str, String)>,
    /// Requests in flight at most.
    pub(crate) depth: u32,
    /// At most so much passes between two actions.
    pub(crate) think_ns: u64,
    /// Longest write, in blocks.
    pub(crate) longest: u32,
    /// One action in so many asks for a snapshot, if none is under way.
    pub(crate) snapshot_one_in: u32,
    /// The longest grace of a snapshot.
    pub(crate) within_ms: u64,
    /// Snapshots that are kept.
    pub(crate) keep: usize,
    pub(crate) views: bool,
    pub(crate) trouble: Trouble,
    /// Actions of the user until the region is closed, or power fails.
    pub(crate) actions: u32,
    /// How often that is gone through.
    pub(crate) lives: u32,
    /// Power fails before one event in so many, in a copy.
    pub(crate) crash_one_in: u32,
}

fn choose<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn speed(rng: &mut Rng) -> Speed {
    let least_ns = choose(rng, &[500, 5_000, 50_000]);
    let spread_ns = least_ns * choose(rng, &[1, 4, 20]);
    Speed { least_ns, spread_ns, slow_one_in: choose(rng, &[0, 0, 20, 200]) }
}

impl Config {
    /// That of a seed.
    pub(crate) fn of(rng: &mut Rng) -> Self {
        let image = rng.u32(..5) < 3;
        let small = rng.u32(..5) == 0;
        let origin_blocks = if small { 1024 } else { choose(rng, &[128, 256, 512, 1000]) };
        let region_blocks = choose(rng, &[1184, 1200, 1600]);
        let trouble = match rng.u32(..12) {
            0 => Trouble::OriginReads,
            1 => Trouble::OriginWrites,
            2 => Trouble::RegionReads,
            3 => Trouble::RegionWrites,
            4 => Trouble::RegionDies,
            _ => Trouble::None,
        };
        let budgets = ["0", "50", "1000", "unlimited"];
        let knobs = vec![
            ("predictor", choose(rng, &["off", "ewma", "ewma", "age", "stream"]).to_owned()),
            ("mirror", choose(rng, &["auto", "force", "force", "off"]).to_owned()),
            ("tick_ms", choose(rng, &["10", "10", "25"]).to_owned()),
            ("lead_ms", choose(rng, &["0", "5", "30", "100"]).to_owned()),
            ("horizon_ms", choose(rng, &["1", "20", "1000"]).to_owned()),
            ("threshold_permille", choose(rng, &["100", "500", "1000"]).to_owned()),
            ("guard_threshold_permille", choose(rng, &["0", "100", "500"]).to_owned()),
            ("freeze_budget_us", choose(rng, &budgets).to_owned()),
            ("staging_budget_blocks", choose(rng, &["0", "0", "16", "100"]).to_owned()),
            ("copy_bandwidth_kib", choose(rng, &["0", "0", "0", "4096"]).to_owned()),
            ("trigger_ops", choose(rng, &["0", "0", "0", "50"]).to_owned()),
            ("intent_clean_ms", choose(rng, &["10", "10", "100", "60000"]).to_owned()),
            ("min_distance_ms", choose(rng, &["10", "50"]).to_owned()),
            ("drop_oldest", choose(rng, &["0", "0", "0", "1"]).to_owned()),
            ("guard_timeout_ms", choose(rng, &["0", "60000", "60000", "20", "2"]).to_owned()),
        ];
        Self {
            origin_blocks,
            region_blocks,
            origin_cached: rng.bool(),
            region_cached: rng.bool(),
            origin_speed: speed(rng),
            region_speed: speed(rng),
            pace: Pace {
                step_ns: choose(rng, &[20, 200, 2_000]),
                wake_ns: choose(rng, &[1_000, 20_000, 500_000]),
                alloc_fails_one_in: choose(rng, &[0, 3, 50]),
            },
            image,
            fail_writes: rng.u32(..6) == 0,
            knobs,
            depth: choose(rng, &[1, 4, 16, 64]),
            think_ns: choose(rng, &[5_000, 50_000, 500_000, 2_000_000]),
            longest: if small { 128 } else { choose(rng, &[4, 16, 40]) },
            snapshot_one_in: choose(rng, &[10, 30, 100]),
            within_ms: choose(rng, &[0, 10, 60]),
            keep: if small { 12 } else { choose(rng, &[1, 2, 4, 6]) },
            views: image && rng.bool(),
            trouble,
            actions: choose(rng, &[60, 150, 400]),
            lives: rng.u32(1..5),
            crash_one_in: choose(rng, &[10, 30, 60]),
        }
    }
}
